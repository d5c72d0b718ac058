"""CSA: ranks that hold earlier keys choose which blocks to send.

They choose by sample queries (probes) from later ranks.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from sps2.common.errors import Invalid
from sps2.common.transport.expected import Like, check_from
from sps2.kernels import State
from sps2.kernels.contracts import BLOCK
from sps2.kernels.csa_scores import (
    Blocks,
    Probes,
    Scores,
    choose_probes,
    importance,
    lost,
    score,
)
from sps2.kernels.rotated_rows import quantise_rotated, restore_rotated
from sps2.services.prefill.group import Group
from sps2.services.prefill.methods.csa_coded import CodedForm
from sps2.services.prefill.methods.csa_packed import PackedForm
from sps2.services.prefill.methods.gather import Gather
from sps2.services.prefill.methods.partial_attention import Seen, by_heads
from sps2.services.tasks import gather_all

Made = TypeVar("Made")

PROBES, SUMS, TOTALS = range(3)
"""`at` of the three kinds of probe frames."""


class Kept(NamedTuple):
    """What one owner sent.

    levels: [kv_heads, blocks] uint8: 0 of a dropped block, else larger the finer it was sent.
    lost: [kv_heads] float32, the mean mass of dropped blocks in held-out probes.
    """

    levels: Tensor
    lost: Tensor


class Form(Protocol[Made]):
    """How chosen blocks travel. Importance is in units of that of uniform attention."""

    def levels(self, layer: int, kept: Tensor, worth: Tensor) -> Tensor:
        """How finely blocks are sent, [kv_heads, blocks] uint8; 0 where `kept` is false.

        Args:
            worth: [kv_heads, blocks], the blocks' importance.
        """
        ...

    def sender(self, k: Tensor, v: Tensor) -> Callable[[Tensor, Tensor], Made]:
        """A function of levels and probes, called for each consumer of these keys and values."""
        ...

    async def carried(self, layer: int, made: Made, levels: Tensor) -> tuple[Tensor, ...]:
        """The tensors of a frame, on the host, of what a sender made; `levels` too is there."""
        ...

    def like(self, levels: Tensor, dtype: torch.dtype) -> tuple[Like, ...]:
        """Shapes and dtypes of these tensors."""
        ...

    async def blocks(
        self, layer: int, owner: int, levels: Tensor, carried: tuple[Tensor, ...], probes: Tensor
    ) -> list[list[Blocks]]:
        """The blocks of each KV head from the tensors that an owner sent, in any order."""
        ...


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
        self._form: Form[Any] = PackedForm(group) if selection.steps is None else CodedForm(group)
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
        self._seen = [span.stop - spans[0].start for span in spans]
        """How many of the group's tokens each rank sees."""
        own = spans[group.rank].tokens
        self._limits = [
            selection.held_out * own / max(1, span.start - spans[0].start) for span in spans
        ]
        """What held-out probes of each consumer may lose here: all owners together share a limit in
        proportion to their tokens, since none knows what the others drop."""
        self.kept: dict[tuple[int, int], Kept] = {}
        """What this rank received, by layer and owner."""

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> State:
        group = self._group
        if group.config.window(layer) is not None:
            return await self._whole(layer, q, k, v)

        make = self._form.sender(k, v)
        for consumer in range(group.rank + 1, group.ranks):
            group.background(layer, (k, v), self._serve(layer, consumer, k, make))
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
        came = sum(int((kept.levels > 0).sum()) for kept in self.kept.values())
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

        def probe() -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
            rows = q[probes.rows]
            own = score(rows, k, group.config.scale, probes.rows)
            sent = quantise_rotated(rows)
            return sent, restore_rotated(*sent, q.dtype), own.lse

        rows, as_sent, lse = await group.compute(probe, layer)
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
        came = await gather_all(*(self._take(layer, of, as_sent) for of in owners))
        for each, *pieces in zip(seen, *came, strict=True):
            blocks = [block for piece in pieces for block in piece]
            await group.compute(partial(each.attend_blocks, blocks), layer)

    async def _take(self, layer: int, owner: int, probes: Tensor) -> list[list[Blocks]]:
        """Receive the blocks that an owner sends, by KV head."""
        group, name = self._group, self._group.name_of(owner)
        kv_heads = group.config.kv_heads
        came = await group.recv_from(name, "kv", layer, 0)
        blocks = -(-group.tokens(owner) // BLOCK)
        heading = Like(torch.uint8, (kv_heads, blocks)), Like(torch.float32, (kv_heads,))
        check_from(name, "kv", came[:2], heading)
        levels, gone, *carried = came
        check_from(name, "kv", carried, self._form.like(levels, probes.dtype))
        self.kept[layer, owner] = Kept(levels, gone)
        return await self._form.blocks(layer, owner, levels, tuple(carried), probes)

    # --- as owner ---

    async def _serve(
        self, layer: int, consumer: int, k: Tensor, make: Callable[[Tensor, Tensor], Any]
    ) -> None:
        group = self._group
        rows_by_head = len(self._probes[consumer].rows), group.config.heads
        lse = Like(torch.float16, rows_by_head)
        wanted: tuple[Like, ...] = (
            Like(torch.uint8, (*rows_by_head, group.config.head_dim // 2)),
            Like(torch.uint8, rows_by_head),
        )
        if self._selection.rounds == 1:
            wanted += (lse,)
        rows, size, *sums = await group.recv(consumer, "probe", layer, PROBES, wanted)

        def scored() -> tuple[Tensor, Scores]:
            probes = restore_rotated(rows, size, k.dtype)
            return probes, score(probes, k, group.config.scale)

        def chosen(probes: Tensor, scores: Scores, total: Tensor) -> tuple[Kept, Any]:
            kept = self._chosen(layer, consumer, scores, total)
            return kept, make(kept.levels, probes)

        def at_once() -> tuple[Kept, Any]:
            probes, scores = scored()
            return chosen(probes, scores, torch.logaddexp(sums[0].float(), scores.lse))

        if sums:
            kept, made = await group.compute(at_once, layer)
        else:
            probes, scores = await group.compute(scored, layer)
            await group.send(consumer, "probe", layer, SUMS, (scores.lse.half(),))
            (total,) = await group.recv(consumer, "probe", layer, TOTALS, (lse,))
            work = partial(chosen, probes, scores, total.float())
            kept, made = await group.compute(work, layer)
        levels, gone = await group.down(*kept)
        carried = await self._form.carried(layer, made, levels)
        await group.send(consumer, "kv", layer, 0, (levels, gone, *carried))

    def _chosen(self, layer: int, consumer: int, scores: Scores, total: Tensor) -> Kept:
        selection, probes = self._selection, self._probes[consumer]
        mass = scores.mass(total)
        worth = importance(mass, probes.segments) * (self._seen[consumer] / BLOCK)
        if selection.budget is not None:
            kept = _best(worth, selection.budget)
        else:
            kept = worth >= selection.drop[layer]
        if not self._group.rank:
            kept[:, 0] = True
        gone = lost(mass, kept, probes.held_out)
        bad = gone > self._limits[consumer]
        kept |= bad[:, None]
        gone.masked_fill_(bad, 0)
        return Kept(self._form.levels(layer, kept, worth), gone)


def _best(worth: Tensor, share: float) -> Tensor:
    """A mask of the best `share` of each KV head's blocks. Source: HiRE (arXiv 2402.09360)."""
    count = max(1, round(share * worth.shape[1]))
    chosen = worth.topk(count, 1).indices
    return torch.zeros_like(worth, dtype=torch.bool).scatter_(1, chosen, True)


def _like(tensor: Tensor) -> Like:
    return Like(tensor.dtype, tuple(tensor.shape))
