"""CSA: ranks that hold earlier keys choose which blocks to send.

They choose by sample queries (probes) from later ranks.
"""

import asyncio
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.common.errors import Invalid
from sps2.common.transport.expected import Like, check_from
from sps2.kernels import State
from sps2.kernels.contracts import BLOCK, Packed
from sps2.kernels.csa_scores import (
    Blocks,
    Plain,
    Probes,
    Scores,
    choose_probes,
    importance,
    lost,
    score,
)
from sps2.kernels.kv_quantize import blocks_of, pack
from sps2.kernels.rotated_rows import quantise_rotated, restore_rotated
from sps2.services.prefill.group import Group
from sps2.services.prefill.methods.codec import packed_like
from sps2.services.prefill.methods.gather import Gather
from sps2.services.prefill.methods.partial_attention import Seen, by_heads
from sps2.services.tasks import gather_all

DROPPED, COARSE, FINE = range(3)
"""How a block is sent: not at all, in 4 bits, in 8 bits (or in the model's dtype)."""

PROBES, SUMS, TOTALS = range(3)
"""`at` of the three kinds of probe frames."""


class Kept(NamedTuple):
    """What one owner sent.

    levels: [kv_heads, blocks] uint8, how each block was sent.
    lost: [kv_heads] float32, the mean mass of dropped blocks in held-out probes.
    """

    levels: Tensor
    lost: Tensor


class Csa:
    """The `Attention` of one rank whose span follows those of the ranks before it.

    In every layer the rank sends probes to the owners of earlier keys. Each owner scores them
    exactly and decides by itself, per KV head, which blocks to push and in how many bits. Meanwhile
    the rank attends to its own keys, then to the blocks that arrived, and merges the states. The
    first block of the prompt is always sent. Layers with a sliding window exchange all keys in it.

    Source: measured in this project; see docs/csa.md. It builds on sampled-query block selection,
    as in SampleAttention (arXiv 2406.15486), with the choice made where the keys are.
    """

    def __init__(self, group: Group) -> None:
        selection = group.scheme.selection
        if selection is None:
            raise Invalid("csa needs a selection")
        self._group = group
        self._selection = selection
        self._whole = Gather(group)
        spans = [span for rows in group.rows for span, _ in rows]
        if len(spans) != group.ranks or any(span.tokens % BLOCK for span in spans[:-1]):
            raise Invalid(f"csa needs spans that follow each other, in multiples of {BLOCK}")
        tokens = [span.tokens for span in spans]
        last = group.ranks - 1
        self._probes = [
            self._placed(
                choose_probes(count, selection.probes, selection.suffix if rank == last else 0)
            )
            for rank, count in enumerate(tokens)
        ]
        """The probes of each rank as a consumer."""
        self.kept: dict[tuple[int, int], Kept] = {}
        """What this rank received, by layer and owner."""

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> State:
        group = self._group
        if group.config.window(layer) is not None:
            return await self._whole(layer, q, k, v)

        for consumer in range(group.rank + 1, group.ranks):
            group.background(layer, (k, v), self._serve(layer, consumer, k, v))
        size = group.config.heads // group.config.kv_heads
        seen = [
            Seen(q[:, head * size : (head + 1) * size], group.mine, group.config.scale, None)
            for head in range(group.config.kv_heads)
        ]
        async with asyncio.TaskGroup() as both:
            if group.rank:
                fetched = both.create_task(self._fetch(layer, q, k, seen))
                await asyncio.sleep(0)  # the probes' arithmetic goes first
                if not group.scheme.pipelined:
                    await fetched
            for head, each in enumerate(seen):  # interleaved with the work for later ranks
                own = k[:, head : head + 1], v[:, head : head + 1]
                await group.compute(partial(each.attend, *own, group.mine), layer)
        return await group.compute(partial(by_heads, seen), layer)

    def selected(self) -> tuple[int, int, tuple[float, ...]]:
        """How many blocks owners chose from, how many were sent, and mean lost mass by layer."""
        blocks = sum(kept.levels.numel() for kept in self.kept.values())
        came = sum(int((kept.levels > DROPPED).sum()) for kept in self.kept.values())
        lost = []
        for layer in range(self._group.config.layers):
            gone = [kept.lost for (of, _), kept in self.kept.items() if of == layer]
            lost.append(float(torch.stack(gone).sum(0).mean()) if gone else 0.0)
        return blocks, came, tuple(lost)

    def _placed(self, probes: Probes) -> Probes:
        (rows,) = self._group.up(probes.rows)
        return probes._replace(rows=rows)

    # --- as consumer ---

    async def _fetch(self, layer: int, q: Tensor, k: Tensor, seen: list[Seen]) -> None:
        group = self._group
        owners = range(group.rank)
        probes = self._probes[group.rank]

        def probe() -> tuple[tuple[Tensor, Tensor], Tensor]:
            rows = q[probes.rows]
            own = score(rows, k, group.config.scale, probes.rows)
            return quantise_rotated(rows), own.lse

        rows, lse = await group.compute(probe, layer)
        carried = rows if self._selection.rounds > 1 else (*rows, lse.half())
        await group.send_all(owners, "probe", layer, PROBES, carried)
        if self._selection.rounds > 1:
            wanted = (_like(lse.half()),)
            sums = await gather_all(
                *(group.recv(of, "probe", layer, SUMS, wanted) for of in owners)
            )
            for (there,) in sums:
                lse = torch.logaddexp(lse, there.float())
            total = lse.half()
            await group.send_all(owners, "probe", layer, TOTALS, (total,))
        came = await gather_all(*(self._take(layer, of, k.dtype) for of in owners))
        for each, *pieces in zip(seen, *came, strict=True):
            blocks = [block for piece in pieces for block in piece]
            await group.compute(partial(each.attend_blocks, blocks), layer)

    async def _take(self, layer: int, owner: int, dtype: torch.dtype) -> list[list[Blocks]]:
        """Receive the blocks that an owner sends, by KV head."""
        group, name = self._group, self._group.name_of(owner)
        kv_heads, dim = group.config.kv_heads, group.config.head_dim
        came = await group.recv_from(name, "kv", layer, 0)
        blocks = -(-group.tokens(owner) // BLOCK)
        heading = Like(torch.uint8, (kv_heads, blocks)), Like(torch.float32, (kv_heads,))
        check_from(name, "kv", came[:2], heading)
        levels, gone, *carried = came
        wanted = _carried_like(*_counts(levels), dim, dtype, group.scheme.kv_transfer_dtype)
        check_from(name, "kv", carried, wanted)
        self.kept[layer, owner] = Kept(levels, gone)
        return _by_head(levels, list(group.up(*carried)))

    # --- as owner ---

    async def _serve(self, layer: int, consumer: int, k: Tensor, v: Tensor) -> None:
        group = self._group
        rows_by_head = len(self._probes[consumer].rows), group.config.heads
        lse = Like(torch.float16, rows_by_head)
        wanted: tuple[Like, ...] = (
            Like(torch.uint8, (*rows_by_head, group.config.head_dim // 2)),
            Like(torch.uint8, rows_by_head),
        )
        if self._selection.rounds == 1:
            wanted += (lse,)
        rows, scale, *sums = await group.recv(consumer, "probe", layer, PROBES, wanted)

        def scored() -> Scores:
            return score(restore_rotated(rows, scale, k.dtype), k, group.config.scale)

        def chosen(scores: Scores, total: Tensor) -> tuple[Kept, list[Blocks]]:
            kept = self._chosen(layer, scores, total, self._probes[consumer])
            return kept, _packed(kept.levels, k, v, group.scheme.kv_transfer_dtype)

        def at_once() -> tuple[Kept, list[Blocks]]:
            scores = scored()
            return chosen(scores, torch.logaddexp(sums[0].float(), scores.lse))

        if sums:
            kept, packed = await group.compute(at_once, layer)
        else:
            scores = await group.compute(scored, layer)
            await group.send(consumer, "probe", layer, SUMS, (scores.lse.half(),))
            (total,) = await group.recv(consumer, "probe", layer, TOTALS, (lse,))
            kept, packed = await group.compute(partial(chosen, scores, total.float()), layer)
        levels, gone = await group.down(*kept)
        blocks = [_first(each, count) for each, count in zip(packed, _counts(levels), strict=False)]
        carried = _joined([type(each)(*await group.down(*each)) for each in blocks])
        await group.send(consumer, "kv", layer, 0, (levels, gone, *carried))

    def _chosen(self, layer: int, scores: Scores, total: Tensor, probes: Probes) -> Kept:
        selection = self._selection
        mass = scores.mass(total)
        worth = importance(mass, probes.segments)
        if selection.budget is not None:
            kept = _best(worth, selection.budget)
        else:
            kept = worth >= selection.drop[layer]
        if not self._group.rank:
            kept[:, 0] = True
        gone = lost(mass, kept, probes.held_out)
        bad = gone > selection.held_out
        kept |= bad[:, None]
        gone.masked_fill_(bad, 0)

        levels = kept.to(torch.uint8)
        levels[kept & (worth >= selection.fine[layer])] = FINE
        if self._group.scheme.kv_transfer_dtype == "auto":
            levels[kept] = FINE
        return Kept(levels, gone)


def _best(worth: Tensor, share: float) -> Tensor:
    """A mask of the best `share` of each KV head's blocks. Source: HiRE (arXiv 2402.09360)."""
    count = max(1, round(share * worth.shape[1]))
    chosen = worth.topk(count, 1).indices
    return torch.zeros_like(worth, dtype=torch.bool).scatter_(1, chosen, True)


def _packed(levels: Tensor, k: Tensor, v: Tensor, kv_transfer_dtype: str) -> list[Blocks]:
    """The fine blocks, then the coarse blocks if there can be any, ordered by KV head."""
    if kv_transfer_dtype == "auto":
        return [Plain(blocks_of(k)[levels == FINE], blocks_of(v)[levels == FINE])]
    return [
        pack(k, v, levels == FINE, roomy=True),
        pack(k, v, levels == COARSE, 4, roomy=True),
    ]


def _counts(levels: Tensor) -> tuple[int, int]:
    """How many blocks are fine, and how many coarse."""
    return int((levels == FINE).sum()), int((levels == COARSE).sum())


def _first(blocks: Blocks, count: int) -> Blocks:
    return type(blocks)(*(tensor[:count] for tensor in blocks))


def _joined(blocks: list[Blocks]) -> tuple[Tensor, ...]:
    """The tensors of a frame; the scales of fine and coarse blocks are joined."""
    match blocks:
        case [Packed() as fine, Packed() as coarse] if len(coarse.k):
            scales = (torch.cat(pair) for pair in zip(fine[1::2], coarse[1::2], strict=True))
            return fine.k, fine.v, coarse.k, coarse.v, *scales
    return tuple(blocks[0])


def _carried_like(
    fine: int, coarse: int, dim: int, dtype: torch.dtype, kv_transfer_dtype: str
) -> tuple[Like, ...]:
    """Shapes and dtypes of the tensors that carry these blocks; see `_joined`."""
    if kv_transfer_dtype == "auto":
        return (Like(dtype, (fine, BLOCK, dim)),) * 2
    if not coarse:
        return packed_like(fine, dim)
    (numbers, *_), (_, k_scale, _, v_scale) = (
        packed_like(fine, dim),
        packed_like(fine + coarse, dim),
    )
    small = Like(torch.uint8, (coarse, BLOCK, dim // 2))
    return numbers, numbers, small, small, k_scale, v_scale


def _like(tensor: Tensor) -> Like:
    return Like(tensor.dtype, tuple(tensor.shape))


def _by_head(levels: Tensor, carried: list[Tensor]) -> list[list[Blocks]]:
    """The received blocks by KV head, in no particular order."""
    wholes: list[tuple[Tensor, Blocks]]
    if len(carried) == 2:
        wholes = [(levels == FINE, Plain(*carried))]
    elif len(carried) == 4:
        wholes = [(levels == FINE, Packed(*carried))]
    else:
        k, v, small_k, small_v, k_scale, v_scale = carried
        fine = Packed(k, k_scale[: len(k)], v, v_scale[: len(k)])
        small = Packed(small_k, k_scale[len(k) :], small_v, v_scale[len(k) :])
        wholes = [(levels == FINE, fine), (levels == COARSE, small)]
    found: list[list[Blocks]] = [[] for _ in levels]
    for mask, whole in wholes:
        counts = mask.sum(1).tolist()
        parts = zip(*(tensor.split(counts) for tensor in whole), strict=True)
        for head, (count, part) in enumerate(zip(counts, parts, strict=True)):
            if count:
                found[head].append(type(whole)(*part))
    return found
