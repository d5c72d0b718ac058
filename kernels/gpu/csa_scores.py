"""Scores CSA's probes on a GPU, in one pass over the keys.

It writes the log-sum-exp of every row and block of keys; masses, sums and peaks follow from it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sps2.kernels import check
from sps2.kernels.contracts import BLOCK
from sps2.kernels.gpu import tiles
from sps2.kernels.gpu.softmax import LN2, LOG2E, operand, product

PORTION = 8
"""Blocks of keys per program."""


def score(q: Tensor, k: Tensor, scale: float, positions: Tensor | None) -> tuple[Tensor, Tensor]:
    """`sps2.kernels.csa_scores.score`: weight [kv_heads, rows, blocks], peak [kv_heads, rows].

    Rows are probes * group.
    """
    check.queries(q, scale)
    check.keys(q, k, k, None)
    probes, heads, dim = q.shape
    tokens, kv_heads, _ = k.shape
    if positions is not None:
        check.shaped("positions", positions, (probes,))
        check.beside("positions", positions, q)
    group = heads // kv_heads
    rows, blocks = probes * group, -(-tokens // BLOCK)
    lse = torch.empty(kv_heads, blocks, rows, device=q.device)
    if rows and blocks:
        tile = tile_of(q, group)
        grid = triton.cdiv(rows, tile.rows), triton.cdiv(blocks, PORTION), kv_heads

        def launch(tile: tiles.Tile) -> None:
            _score[grid](
                *(q, k, q if positions is None else positions, lse),
                *(*q.stride()[:2], *k.stride()[:2]),
                *(scale, rows, tokens, blocks),
                PORTION=PORTION,
                GROUP=group,
                DIM=dim,
                PADDED=tiles.power(dim),
                ROWS=tile.rows,
                KEYS=BLOCK,
                PLACED=positions is not None,
                num_warps=tile.warps,
                num_stages=tile.stages,
            )

        with torch.cuda.device_of(q):
            tiles.launch(("scores", dim, q.dtype), tile, launch)
    if not blocks:
        return lse.mT, torch.zeros(kv_heads, rows, device=q.device)
    peak = lse.amax(1).clamp_(min=torch.finfo(torch.float32).min)
    return lse.sub_(peak[:, None]).exp_().mT, peak


def tile_of(q: Tensor, group: int) -> tiles.Tile:
    """The tile for these probes, whose `group` heads are its rows."""
    return tiles.prefill(q.shape[2], q.dtype, q.device, len(q) * group)


@triton.jit(do_not_specialize=["rows", "tokens", "blocks"])
def _score(
    Q, K, AT, LSE,
    q_row, q_head, k_row, k_head,
    scale, rows, tokens, blocks,
    PORTION: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PLACED: tl.constexpr,
):  # fmt: skip
    """Rows are the heads of a KV head, probe by probe."""
    kv_head = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    probe = (row // GROUP).to(tl.int64)
    dims = tl.arange(0, PADDED)
    q_at = Q + probe * q_row + (kv_head * GROUP + row % GROUP) * q_head
    inside = live[:, None] & (dims < DIM)[None, :]
    q = tl.load(q_at[:, None] + dims[None, :], mask=inside, other=0.0)
    if PLACED:
        at = tl.load(AT + probe, mask=live, other=-1)

    ahead = tl.arange(0, KEYS)
    first = tl.program_id(1) * PORTION
    for block in range(first, tl.minimum(first + PORTION, blocks)):
        key = block * KEYS + ahead
        k_at = K + kv_head * k_head + key.to(tl.int64)[None, :] * k_row + dims[:, None]
        k = tl.load(k_at, mask=(key < tokens)[None, :] & (dims < DIM)[:, None], other=0.0)
        scores = product(q, operand(k, q), tl.zeros([ROWS, KEYS], dtype=tl.float32))
        scores *= scale * LOG2E
        seen = (key < tokens)[None, :] & (row >= 0)[:, None]
        if PLACED:
            seen &= key[None, :] <= at[:, None]
        scores = tl.where(seen, scores, float("-inf"))
        top = tl.max(scores, 1)
        base = tl.where(top == float("-inf"), 0.0, top)
        whole = tl.sum(tl.exp2(scores - base[:, None]), 1)
        lse = tl.where(whole > 0, (base + tl.log2(tl.maximum(whole, 1e-38))) * LN2, float("-inf"))
        tl.store(LSE + (kv_head * blocks + block) * rows + row, lse, mask=live)
