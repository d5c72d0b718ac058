"""Ulysses, ring, and both: heads are split within rows of ranks, keys are passed between rows."""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.common.spans import Span, even_split
from sps2.common.transport.expected import Like
from sps2.kernels import State
from sps2.services.prefill.group import Group
from sps2.services.prefill.methods.codec import from_wire, to_wire, wire_like
from sps2.services.prefill.methods.partial_attention import Rows, Seen, by_heads, rows_of
from sps2.services.tasks import gather_all


class Part(NamedTuple):
    """Heads that go through a layer together: a micro-batch.

    number: its number within its column. heads: query heads. kv_heads: the KV heads that they use.
    """

    number: int
    heads: Span
    kv_heads: Span


class Piece(NamedTuple):
    """Rows of one rank, and where they lie among the tokens of its row of ranks."""

    column: int
    theirs: slice
    ours: slice


class Usp:
    """The `Attention` of one rank of R rows and U columns of ranks, rank = row * U + column.

    Tokens are assigned to rows so that causal work is even, and within a row to columns. An
    all-to-all within the row gives each column all of the row's tokens for its share of the query
    heads, with the keys and values that these need. The keys and values then go round the ring of
    the same column in all rows, in R - 1 steps. A second all-to-all returns the states. U = 1 is
    ring attention (arXiv 2310.01889), R = 1 is Ulysses (arXiv 2309.14509), both together are USP
    (arXiv 2405.07719).

    If pipelined, every KV head is a micro-batch of its own: transfers of one overlap with
    arithmetic of another, and a state is sent as soon as it is done.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._columns = group.scheme.ulysses
        self._row, self._column = divmod(group.rank, self._columns)
        self._count = group.ranks // self._columns
        shares = even_split(group.config.heads, self._columns)
        self._parts = [self._parts_of(share) for share in shares]
        self._layouts = [self._layout(row) for row in range(self._count)]
        """For each row of ranks: the positions of its tokens in order, and which rank has them."""

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> State:
        out = State(torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32))
        sends = [self._scatter(layer, part, column, q, k, v) for column, part in self._elsewhere()]
        mine = [self._attend(layer, part, q, k, v, out) for part in self._parts[self._column]]
        returns = [self._take(layer, part, column, out) for column, part in self._elsewhere()]
        await gather_all(*sends, *mine, *returns)
        return out

    def _parts_of(self, heads: Span) -> list[Part]:
        config = self._group.config
        size = config.heads // config.kv_heads
        whole = Span(heads.start // size, -(-heads.stop // size))
        if not self._group.scheme.pipelined:
            return [Part(0, heads, whole)]
        return [
            Part(index, heads & Span(kv * size, (kv + 1) * size), Span(kv, kv + 1))
            for index, kv in enumerate(range(*whole))
        ]

    def _layout(self, row: int) -> tuple[list[Rows], list[Piece]]:
        owned = [
            (span, column, rows)
            for column in range(self._columns)
            for span, rows in self._group.rows[row * self._columns + column]
        ]
        owned.sort()
        pieces = []
        first = 0
        for span, column, rows in owned:
            pieces.append(Piece(column, rows, slice(first, first + span.tokens)))
            first += span.tokens
        return rows_of(span for span, _, _ in owned), pieces

    def _elsewhere(self) -> list[tuple[int, Part]]:
        """The other columns of this row, each with its parts."""
        return [
            (column, part)
            for column, parts in enumerate(self._parts)
            if column != self._column
            for part in parts
        ]

    def _rank(self, row: int, column: int) -> int:
        return row % self._count * self._columns + column

    async def _scatter(
        self, layer: int, part: Part, column: int, q: Tensor, k: Tensor, v: Tensor
    ) -> None:
        group = self._group
        to = self._rank(self._row, column)

        def cut() -> tuple[Tensor, ...]:
            return to_wire(
                _of(k, part.kv_heads), _of(v, part.kv_heads), group.scheme.kv_transfer_dtype
            )

        carried = await group.compute(cut, layer)
        queries = _of(q, part.heads)
        await gather_all(
            group.send(to, "kv", layer, part.number, carried),
            group.send(to, "q", layer, part.number, (queries,)),
        )

    async def _attend(
        self, layer: int, part: Part, q: Tensor, k: Tensor, v: Tensor, out: State
    ) -> None:
        group, config = self._group, self._group.config
        rows, _ = self._layouts[self._row]
        q, k, v = await self._gather(layer, part, q, k, v)
        window = config.window(layer)
        seen = [
            (Seen(q[:, heads], rows, config.scale, window), kv)
            for heads, kv in _by_kv_head(part, config.heads // config.kv_heads)
        ]

        def attend(carried: tuple[Tensor, ...], source: int) -> None:
            there, whose = self._layouts[source]
            keys, values = k, v
            if carried:
                keys, values = from_wire(carried, whose[-1].ours.stop, q.dtype)
            for each, kv in seen:
                each.attend(keys[:, kv], values[:, kv], there)

        carried: tuple[Tensor, ...] = ()
        for step in range(self._count):
            work = partial(attend, carried, (self._row - step) % self._count)
            if step == self._count - 1:
                await group.compute(work, layer)
                break
            leaving = carried or await group.compute(
                partial(to_wire, k, v, group.scheme.kv_transfer_dtype), layer
            )
            at = step * len(self._parts[self._column]) + part.number
            _, whose = self._layouts[(self._row - step - 1) % self._count]
            coming = self._wanted(part, whose[-1].ours.stop, q.dtype)
            async with asyncio.TaskGroup() as both:
                passing = both.create_task(self._pass(layer, at, leaving, coming))
                if not group.scheme.pipelined:
                    await passing
                await group.compute(work, layer)
            carried = passing.result()

        done = await group.compute(lambda: by_heads(each for each, _ in seen), layer)
        await gather_all(
            *(self._give(layer, part, column, done, out) for column in range(self._columns))
        )

    async def _gather(
        self, layer: int, part: Part, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The row's q, k and v for `part`, in order of position."""
        mine = _of(q, part.heads), _of(k, part.kv_heads), _of(v, part.kv_heads)
        if self._columns == 1:
            return mine
        columns = [column for column in range(self._columns) if column != self._column]
        came = await gather_all(
            *(self._receive(layer, part, column, q.dtype) for column in columns)
        )
        held = {self._column: mine, **dict(zip(columns, came, strict=True))}
        _, pieces = self._layouts[self._row]

        def assemble() -> list[Tensor]:
            return [
                torch.cat([held[piece.column][index][piece.theirs] for piece in pieces])
                for index in range(3)
            ]

        q, k, v = await self._group.compute(assemble, layer)
        return q, k, v

    def _wanted(self, part: Part, tokens: int, dtype: torch.dtype) -> tuple[Like, ...]:
        """Shapes and dtypes in which the keys and values of a part arrive."""
        dim, kv_transfer_dtype = self._group.config.head_dim, self._group.scheme.kv_transfer_dtype
        return wire_like(tokens, part.kv_heads.tokens, dim, dtype, kv_transfer_dtype)

    async def _receive(
        self, layer: int, part: Part, column: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        rank = self._rank(self._row, column)
        tokens, dim = self._group.tokens(rank), self._group.config.head_dim
        queries = Like(dtype, (tokens, part.heads.tokens, dim))
        carried, (q,) = await gather_all(
            self._group.recv(rank, "kv", layer, part.number, self._wanted(part, tokens, dtype)),
            self._group.recv(rank, "q", layer, part.number, (queries,)),
        )
        k, v = await self._group.compute(partial(from_wire, carried, len(q), q.dtype), layer)
        return q, k, v

    async def _pass(
        self, layer: int, at: int, carried: tuple[Tensor, ...], coming: Sequence[Like]
    ) -> tuple[Tensor, ...]:
        """Send `carried` to the row below; returns what the row above sent."""
        below = self._rank(self._row + 1, self._column)
        above = self._rank(self._row - 1, self._column)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._group.send(below, "kv", layer, at, carried))
            arriving = both.create_task(self._group.recv(above, "kv", layer, at, coming))
        return arriving.result()

    async def _give(self, layer: int, part: Part, column: int, done: State, out: State) -> None:
        """Return the states of one column's tokens to its rank."""
        _, pieces = self._layouts[self._row]
        rows = [piece.ours for piece in pieces if piece.column == column]
        theirs = [torch.cat([side[each] for each in rows]) for side in done]
        if column == self._column:
            _put(out, part.heads, theirs)
        else:
            rank = self._rank(self._row, column)
            await self._group.send(rank, "state", layer, part.number, theirs)

    async def _take(self, layer: int, part: Part, column: int, out: State) -> None:
        rank = self._rank(self._row, column)
        rows, heads, dtype = len(out.out), part.heads.tokens, out.out.dtype
        state = await self._group.recv_state(rank, layer, part.number, rows, heads, dtype)
        _put(out, part.heads, state)


def _of(x: Tensor, heads: Span) -> Tensor:
    return x[:, heads.start : heads.stop]


def _put(out: State, heads: Span, theirs: Iterable[Tensor]) -> None:
    for side, part in zip(out, theirs, strict=True):
        _of(side, heads).copy_(part)


def _by_kv_head(part: Part, size: int) -> list[tuple[slice, slice]]:
    """Slices of a part's query heads in its q, with the KV heads that they use in its k."""
    if part.heads.tokens == part.kv_heads.tokens * size:
        return [(slice(0, part.heads.tokens), slice(0, part.kv_heads.tokens))]
    found = []
    for index, kv in enumerate(range(*part.kv_heads)):
        heads = part.heads & Span(kv * size, (kv + 1) * size)
        start = part.heads.start
        found.append((slice(heads.start - start, heads.stop - start), slice(index, index + 1)))
    return found
