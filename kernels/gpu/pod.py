"""Attention of a hybrid batch in one launch: prompts, which compute, and decoding, which reads.

Programs of both kinds share every multiprocessor. A program's kind is decided when it runs: it
draws a ticket of its multiprocessor, and tickets alternate between the kinds in proportion to their
work. When one kind has no work left, the program does the other.
Source: POD-Attention (arXiv 2410.18038), section 4. The tiles are those of `flash` and `decode`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import smid

from sps2.kernels import check
from sps2.kernels.gpu import decode, flash, tiles
from sps2.kernels.gpu.decode import piece_of
from sps2.kernels.gpu.flash import Part, strides, tile_of
from sps2.kernels.gpu.merge import merge_pieces
from sps2.kernels.gpu.softmax import INTERPRETED
from sps2.kernels.relay import PagedRows
from sps2.kernels.state import Scales, State

PROCESSORS = 512
"""Tickets for more multiprocessors than any device has."""


class Prompts(NamedTuple):
    """The arguments of `sps2.kernels.attention` for several sequences, as `flash.attend`."""

    q: Tensor
    k: Tensor
    v: Tensor
    parts: Sequence[Part]
    state: State | None = None
    scales: Scales | None = None


class Decoding(NamedTuple):
    """The arguments of `sps2.kernels.paged_attention`."""

    q: Tensor
    k_pool: Tensor
    v_pool: Tensor
    rows: PagedRows
    scales: Scales | None = None


def attend(
    prompts: Prompts,
    decoding: Decoding,
    scale: float,
    window: int | None = None,
    tile: tiles.Hybrid | None = None,
) -> tuple[State, State]:
    """The results of `flash.attend` and `decode.attend`, for the same layer of one model.

    Args:
        tile: instead of the table's.

    Raises:
        ValueError: arguments of either are wrong, or heads, head dims or dtypes differ.
    """
    q, k, v, parts, state, scales = prompts
    ask, keys, values, rows, others = decoding
    check.queries(q, scale)
    check.keys(q, k, v, scales)
    tile = tile or tiles.hybrid(q.shape[2], q.dtype, q.device, q.shape[1] // k.shape[1])
    plan, _, state, fresh = flash.prepare(q, k, v, parts, scale, window, state, scales, tile.prompt)
    work = decode.prepare(ask, keys, values, rows, scale, window, others, tile=tile.decoding)
    check.typed("decoding.q", ask, q.dtype)
    check.beside("decoding.q", ask, q)
    check.shaped("decoding.q", ask, (None, *q.shape[1:]))
    check.shaped("decoding.k_pool", keys, (None, *k.shape[1:]))
    heads, dim = q.shape[1:]
    kv_heads = k.shape[1]
    ((pieces, _),) = work.launches
    rest, count = len(plan.tiles) * heads, len(pieces) * kv_heads
    if rest + count:
        own = (k, v) if scales is None else scales
        paged = (keys, values) if others is None else others
        tickets = torch.zeros(2 + PROCESSORS, dtype=torch.int32, device=q.device)
        with torch.cuda.device_of(q):
            _pod[rest + count,](
                *(tickets, rest, count, len(plan.tiles), len(pieces)),
                *(q, k, v, *own, *plan, *state),
                *strides(q, k, v, *own, *state),
                *(ask, keys, values, *paged, work.segments, pieces, work.members, *work.state),
                *strides(ask, keys, values, *paged),
                *(scale, window or 0, heads),
                GROUP=heads // kv_heads,
                DIM=dim,
                PADDED=tiles.power(dim),
                WINDOWED=window is not None,
                FRESH=fresh,
                ROWS=tile.prompt.rows,
                KEYS=tile.prompt.keys,
                SCALED=scales is not None,
                FEW=tile.decoding.rows,
                PAGED=tile.decoding.keys,
                PAGES_SCALED=others is not None,
                num_warps=tile.prompt.warps,
                num_stages=tile.prompt.stages,
            )
    return state, merge_pieces(work.state, work.offsets)


@triton.jit
def _pod(
    TICKETS, prompt_work, decoding_work, prompt_tiles, pieces,
    Q, K, V, K_SCALE, V_SCALE, TILES, AT, RUNS, OUT, LSE,
    q_row, q_head, k_row, k_head, v_row, v_head,
    ks_row, ks_head, vs_row, vs_head, out_row, out_head, lse_row, lse_head,
    ASK, KEYS_POOL, VALUES_POOL, KEYS_SCALE, VALUES_SCALE,
    SEGMENTS, PIECES, MEMBERS, STATES, STATES_LSE,
    ask_row, ask_head, kp_row, kp_head, vp_row, vp_head, kps_row, kps_head, vps_row, vps_head,
    scale, window, heads,
    GROUP: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
    WINDOWED: tl.constexpr, FRESH: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SCALED: tl.constexpr,
    FEW: tl.constexpr, PAGED: tl.constexpr, PAGES_SCALED: tl.constexpr,
):  # fmt: skip
    processor = tl.program_id(0) % 3 if INTERPRETED else smid()
    ticket = tl.atomic_add(TICKETS + 2 + processor, 1).to(tl.int64)
    both = (prompt_work + decoding_work).to(tl.int64)
    prompt = (ticket + 1) * prompt_work // both > ticket * prompt_work // both
    number = tl.atomic_add(TICKETS + tl.where(prompt, 0, 1), 1)
    if number >= tl.where(prompt, prompt_work, decoding_work):
        prompt = prompt == 0
        number = tl.atomic_add(TICKETS + tl.where(prompt, 0, 1), 1)
    if prompt:
        tile_of(
            prompt_tiles - 1 - number % prompt_tiles, (number // prompt_tiles).to(tl.int64),
            Q, K, V, K_SCALE, V_SCALE, TILES, AT, RUNS, OUT, LSE,
            q_row, q_head, k_row, k_head, v_row, v_head,
            ks_row, ks_head, vs_row, vs_head, out_row, out_head, lse_row, lse_head,
            scale, window, GROUP, DIM, PADDED, ROWS, KEYS, WINDOWED, SCALED, FRESH,
        )  # fmt: skip
    else:
        piece_of(
            (number % pieces).to(tl.int64), (number // pieces).to(tl.int64),
            ASK, KEYS_POOL, VALUES_POOL, KEYS_SCALE, VALUES_SCALE,
            SEGMENTS, PIECES, MEMBERS, STATES, STATES_LSE,
            ask_row, ask_head, kp_row, kp_head, vp_row, vp_head,
            kps_row, kps_head, vps_row, vps_head,
            scale, heads, GROUP, DIM, PADDED, FEW, PAGED, PAGES_SCALED,
        )  # fmt: skip
