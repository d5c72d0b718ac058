"""Block-sparse attention on a GPU, by a mask of blocks of queries and blocks of keys.

It serves CSA or any other pattern of whole blocks. The kept columns of each row of blocks are
listed on the device, without waiting for it, and only these are read.
Source: Block-sparse FlashAttention (FlashAttention, arXiv 2205.14135, section 3.3).
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sps2.kernels import check
from sps2.kernels.contracts import BLOCK
from sps2.kernels.gpu import tiles, upload
from sps2.kernels.gpu.attention_tile import begin, take
from sps2.kernels.gpu.flash import strides
from sps2.kernels.gpu.softmax import LOG2E, finish
from sps2.kernels.state import Run, Scales, State


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    queries: Sequence[Run],
    start: int,
    scale: float,
    window: int | None = None,
    state: State | None = None,
    scales: Scales | None = None,
) -> State:
    """As `sps2.kernels.attention`, but a query sees only those past keys that the mask keeps.

    Args:
        q: [n, heads, dim].
        k, v: [m, kv_heads, dim], at positions from `start` on.
        mask: [masks, blocks of rows of q, blocks of rows of k] bool on the device; blocks have
            `BLOCK` rows, the last ones may have fewer. `masks` divides heads: 1 for all heads,
            kv_heads, or heads.
        queries: the positions of q, as runs that cover its rows in order.
        state: of the same queries over other keys; it is updated in place, and returned.
    """
    check.queries(q, scale)
    check.keys(q, k, v, scales)
    check.window(window)
    n, heads, dim = q.shape
    rows, columns = -(-n // BLOCK), -(-len(k) // BLOCK)
    check.shaped("mask", mask, (None, rows, columns))
    check.typed("mask", mask, torch.bool)
    check.beside("mask", mask, q)
    masks = len(mask)
    divides = masks > 0 and heads % masks == 0
    if not divides:
        raise ValueError(f"mask has {masks} masks, which do not divide the {heads} heads of q")
    covered = sum(run.tokens for run in queries)
    if covered != n:
        raise ValueError(f"queries cover {covered} rows, not the {n} of q")
    fresh = state is None
    if state is None:
        made = torch.empty(n, heads, dim, device=q.device), torch.empty(n, heads, device=q.device)
        state = State(*made)
    else:
        check.state(q, state)
    if not n or not heads:
        return state

    at = torch.cat([torch.arange(run.start, run.start + run.tokens) for run in queries])
    at = upload(at.int(), q.device)
    order, counts = _listed(mask, at, start, len(k), window)
    tile = tiles.prefill(dim, q.dtype, q.device, min(n, BLOCK), BLOCK)
    own = (k, v) if scales is None else scales
    with torch.cuda.device_of(q):
        _sparse[rows * (BLOCK // tile.rows), heads](
            *(q, k, v, *own, order, counts, at, *state),
            *strides(q, k, v, *own, *state),
            *(n, len(k), rows, columns, start, scale, window or 0),
            GROUP=heads // k.shape[1],
            SHARING=heads // masks,
            DIM=dim,
            PADDED=tiles.power(dim),
            ROWS=tile.rows,
            KEYS=tile.keys,
            SIZE=BLOCK,
            WINDOWED=window is not None,
            SCALED=scales is not None,
            FRESH=fresh,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return state


def _listed(
    mask: Tensor, at: Tensor, start: int, keys: int, window: int | None
) -> tuple[Tensor, Tensor]:
    """Kept columns in order, [masks, rows, columns] int32, and their numbers, [masks, rows, 2].

    The first number is of columns that all queries of the row of blocks see completely, which come
    first and need no mask; the second is of all.
    """
    masks, rows, columns = mask.shape
    filled = torch.cat((at, at[-1:].expand(-len(at) % BLOCK))).view(rows, BLOCK)
    lowest, highest = filled.aminmax(dim=1)
    order = torch.empty(masks, rows, columns, dtype=torch.int32, device=mask.device)
    counts = torch.empty(masks, rows, 2, dtype=torch.int32, device=mask.device)
    with torch.cuda.device_of(mask):
        _list[rows, masks](
            *(mask, lowest, highest, order, counts, *mask.stride()),
            *(columns, start, keys, window or 0),
            COLUMNS=min(1024, tiles.power(columns)),
            SIZE=BLOCK,
            WINDOWED=window is not None,
        )
    return order, counts


@triton.jit
def _list(
    MASK, LOWEST, HIGHEST, ORDER, COUNTS,
    of_mask, of_row, of_column, columns, start, keys, window,
    COLUMNS: tl.constexpr, SIZE: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    row, mask = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    lowest, highest = tl.load(LOWEST + row), tl.load(HIGHEST + row)
    entry = mask * tl.num_programs(0) + row
    MASK += mask * of_mask + row * of_row
    whole, count = 0, 0
    for left in range(0, columns, COLUMNS):
        column = left + tl.arange(0, COLUMNS)
        first = start + column * SIZE
        kept = tl.load(MASK + column * of_column, mask=column < columns, other=0) != 0
        kept &= first <= highest
        plain = (first + SIZE - 1 <= lowest) & ((column + 1) * SIZE <= keys)
        if WINDOWED:
            kept &= first + SIZE > lowest + 1 - window
            plain &= first < start
        kept = kept.to(tl.int32)
        place = count + tl.cumsum(kept, 0) - 1
        tl.store(ORDER + entry * columns + place, column, mask=kept != 0)
        whole += tl.sum(tl.where(plain, kept, 0), 0)
        count += tl.sum(kept, 0)
    tl.store(COUNTS + entry * 2, whole)
    tl.store(COUNTS + entry * 2 + 1, count)


@triton.jit
def _sparse(
    Q, K, V, K_SCALE, V_SCALE, ORDER, COUNTS, AT, OUT, LSE,
    q_row, q_head, k_row, k_head, v_row, v_head,
    ks_row, ks_head, vs_row, vs_head, out_row, out_head, lse_row, lse_head,
    n, keys, rows, columns, start, scale, window,
    GROUP: tl.constexpr, SHARING: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr,
    WINDOWED: tl.constexpr, SCALED: tl.constexpr, FRESH: tl.constexpr,
):  # fmt: skip
    # the last rows see most keys: they go first
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    kv_head = head // GROUP
    row = tile * ROWS + tl.arange(0, ROWS)
    live = row < n
    dims = tl.arange(0, PADDED)
    inside = live[:, None] & (dims < DIM)[None, :]
    far = row.to(tl.int64)[:, None]
    q = tl.load(Q + head * q_head + far * q_row + dims[None, :], mask=inside, other=0.0)
    at = tl.load(AT + row, mask=live, other=0)

    into = OUT + head * out_head + far * out_row + dims[None, :]
    lse_at = LSE + head * lse_head + row.to(tl.int64) * lse_row
    out, peak, weight = begin(into, lse_at, inside, live, ROWS, PADDED, FRESH)

    K += kv_head * k_head
    V += kv_head * v_head
    K_SCALE += kv_head * ks_head
    V_SCALE += kv_head * vs_head
    entry = head // SHARING * rows + tile * ROWS // SIZE
    ORDER += entry * columns
    parts: tl.constexpr = SIZE // KEYS
    whole = tl.load(COUNTS + entry * 2) * parts
    factor = scale * LOG2E
    for step in range(0, whole):
        slot = (tl.load(ORDER + step // parts) * SIZE + step % parts * KEYS).to(tl.int64)
        out, peak, weight = take(
            q, out, peak, weight, at, factor, window, slot + start, keys + start,
            K + slot * k_row, V + slot * v_row, K_SCALE + slot * ks_row, V_SCALE + slot * vs_row,
            k_row, v_row, ks_row, vs_row, DIM, PADDED, KEYS, False, WINDOWED, SCALED,
        )  # fmt: skip
    for step in range(whole, tl.load(COUNTS + entry * 2 + 1) * parts):
        slot = (tl.load(ORDER + step // parts) * SIZE + step % parts * KEYS).to(tl.int64)
        out, peak, weight = take(
            q, out, peak, weight, at, factor, window, slot + start, keys + start,
            K + slot * k_row, V + slot * v_row, K_SCALE + slot * ks_row, V_SCALE + slot * vs_row,
            k_row, v_row, ks_row, vs_row, DIM, PADDED, KEYS, True, WINDOWED, SCALED,
        )  # fmt: skip

    total, lse = finish(peak, weight)
    tl.store(into, out / total[:, None], mask=inside)
    tl.store(lse_at, lse, mask=live)
