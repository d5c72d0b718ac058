"""The steps of a tile of queries of `flash`: its start, and a tile of keys."""

import triton
import triton.language as tl

from sps2.kernels.gpu.softmax import LOG2E, operand, product, weigh


@triton.jit
def begin(OUT, LSE, inside, live):
    """Output, peak and weight of the state so far; empty where `inside` and `live` are False."""
    out = tl.load(OUT, mask=inside, other=0.0)
    peak = tl.load(LSE, mask=live, other=float("-inf")) * LOG2E
    return out, peak, tl.where(peak > float("-inf"), 1.0, 0.0)


@triton.jit
def take(
    q, out, peak, weight, at, factor, window, key, stop,
    K, V, K_SCALE, V_SCALE, k_row, v_row, ks_row, vs_row,
    DIM: tl.constexpr, PADDED: tl.constexpr, KEYS: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Attend to one tile of keys at positions from `key` on; keys from `stop` on do not exist."""
    ahead = tl.arange(0, KEYS)
    dims = tl.arange(0, PADDED)
    there = key + ahead < stop
    k_at = K + ahead[None, :] * k_row + dims[:, None]
    v_at = V + ahead[:, None] * v_row + dims[None, :]
    if MASKED:
        k = tl.load(k_at, mask=there[None, :] & (dims < DIM)[:, None], other=0)
        v = tl.load(v_at, mask=there[:, None] & (dims < DIM)[None, :], other=0)
    elif DIM != PADDED:
        k = tl.load(k_at, mask=(dims < DIM)[:, None], other=0)
        v = tl.load(v_at, mask=(dims < DIM)[None, :], other=0)
    else:
        k = tl.load(k_at)
        v = tl.load(v_at)
    scores = product(q, operand(k, q), tl.zeros([q.shape[0], KEYS], dtype=tl.float32))
    if SCALED:
        scores *= tl.load(K_SCALE + ahead * ks_row, mask=there, other=0.0)[None, :]
    if MASKED:
        distance = at[:, None] - (key + ahead)[None, :]
        seen = (distance >= 0) & there[None, :]
        if WINDOWED:
            seen &= distance < window
        scores = tl.where(seen, scores, float("-inf"))
    shares, peak, weight, shrink = weigh(scores, factor, peak, weight, MASKED)
    if SCALED:
        shares *= tl.load(V_SCALE + ahead * vs_row, mask=there, other=0.0)[None, :]
    out = product(shares.to(q.dtype), operand(v, q), out * shrink[:, None])
    return out, peak, weight
