"""All-gather of keys and values: each rank pushes its own to every rank whose queries see them."""

import asyncio
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from sps2.kernels import State
from sps2.services.prefill.group import Group
from sps2.services.prefill.methods.codec import from_wire, to_wire, wire_like
from sps2.services.prefill.methods.partial_attention import (
    Rows,
    Seen,
    by_rows,
    cut,
    in_blocks,
    needed,
    rows_of,
)
from sps2.services.tasks import gather_all

MOST_QUERIES = 512, 8192
"""Queries that attend at once, on the CPU and on a GPU."""


class Gather:
    """The `Attention` of one rank: pushes its keys at once, uses those of others as they arrive.

    With consecutive spans a rank needs only the ranks before it, and none of these waits for it.
    That halves a ring's bytes, and transfers overlap with all layers before. Source: the all-gather
    context parallelism of Llama 3 (arXiv 2407.21783, section 3.3.2), with pushes.
    """

    def __init__(self, group: Group) -> None:
        self._group = group

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> State:
        group = self._group
        window = group.config.window(layer)
        others = [rank for rank in range(group.ranks) if rank != group.rank]
        leaving: dict[str, tuple[list[Rows], list[int]]] = {}
        for to in others:
            if rows := needed(group.mine, group.rows[to], window):
                leaving.setdefault(str(rows), (rows, []))[1].append(to)
        pushes = [self._push(layer, k, v, *each) for each in leaving.values()]
        coming = [(of, needed(group.rows[of], group.mine, window)) for of in others]
        sources = [(of, rows) for of, rows in coming if rows]
        queries = _Queries(group, layer, q, window, 1 + len(sources))
        if group.scheme.pipelined:
            for push in pushes:
                group.background(layer, (k, v), push)
            took = [self._take(layer, of, rows, queries) for of, rows in sources]
            states = await gather_all(queries.attend(k, v, group.mine), *took)
        else:
            async with asyncio.TaskGroup() as both:
                for push in pushes:
                    both.create_task(push)
                receives = [self._recv(layer, of, rows, q.dtype) for of, rows in sources]
                came = await gather_all(*receives)
            states = [await queries.attend(k, v, group.mine)]
            for (_, rows), carried in zip(sources, came, strict=True):
                states.append(await self._attend(layer, rows, carried, queries))
        (whole,) = filter(None, states)
        return whole

    async def _push(
        self, layer: int, k: Tensor, v: Tensor, rows: Sequence[Rows], to: Sequence[int]
    ) -> None:
        group = self._group
        work = partial(to_wire, cut(k, rows), cut(v, rows), group.scheme.kv_transfer_dtype)
        plain = group.scheme.kv_transfer_dtype == "auto"  # nothing to compute
        carried = work() if plain else await group.compute(work, layer)
        await group.send_all(to, "kv", layer, 0, carried)

    async def _recv(
        self, layer: int, of: int, rows: Sequence[Rows], dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        config, kv_transfer_dtype = self._group.config, self._group.scheme.kv_transfer_dtype
        tokens = sum(span.tokens for span, _ in rows)
        wanted = wire_like(tokens, config.kv_heads, config.head_dim, dtype, kv_transfer_dtype)
        return await self._group.recv(of, "kv", layer, 0, wanted)

    async def _take(
        self, layer: int, of: int, rows: Sequence[Rows], queries: "_Queries"
    ) -> State | None:
        carried = await self._recv(layer, of, rows, queries.dtype)
        return await self._attend(layer, rows, carried, queries)

    async def _attend(
        self, layer: int, rows: Sequence[Rows], carried: tuple[Tensor, ...], queries: "_Queries"
    ) -> State | None:
        spans = rows_of(span for span, _ in rows)
        tokens = sum(span.tokens for span, _ in rows)
        work = partial(from_wire, carried, tokens, queries.dtype)
        plain = self._group.scheme.kv_transfer_dtype == "auto"  # nothing to compute
        k, v = work() if plain else await self._group.compute(work, layer)
        return await queries.attend(k, v, spans)


class _Queries:
    """A rank's queries, in blocks, with their attention to keys that arrive in `left` pieces.

    Other prefills of the shard can compute between two blocks.
    """

    def __init__(self, group: Group, layer: int, q: Tensor, window: int | None, left: int) -> None:
        self.dtype = q.dtype
        self._compute = partial(group.compute, layer=layer)
        self._blocks = [
            Seen(q[each.rows], rows_of((each.span,)), group.config.scale, window)
            for each in in_blocks(group.mine, MOST_QUERIES[q.is_cuda])
        ] or [Seen(q, (), group.config.scale, window)]
        self._left = left

    async def attend(self, k: Tensor, v: Tensor, rows: Sequence[Rows]) -> State | None:
        """Attend to keys and values at the positions of `rows`; the last piece has the state."""
        for block in self._blocks[:-1]:
            await self._compute(partial(block.attend, k, v, rows))
        return await self._compute(partial(self._end, k, v, rows))

    def _end(self, k: Tensor, v: Tensor, rows: Sequence[Rows]) -> State | None:
        self._blocks[-1].attend(k, v, rows)
        self._left -= 1
        return None if self._left else by_rows(self._blocks)
