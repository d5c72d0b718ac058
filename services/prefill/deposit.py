"""Sends a prefill rank's keys and values, layer by layer, to the shards that keep them."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from sps2.common.messages import Peer, Target
from sps2.common.model.share import Share
from sps2.common.spans import Span
from sps2.services import coded_kv
from sps2.services.prefill.group import Attention, Group
from sps2.services.prefill.local_pages import LocalPages


class Piece(NamedTuple):
    """The part of a layer's keys and values that goes to one process.

    start: the first position. head: the first KV head, among those of the whole model.
    """

    peer: str
    start: int
    head: int
    rows: slice
    heads: slice


class Deposit:
    """The `Attend` of a rank: deposits its keys and values, and attends.

    A frame holds consecutive positions and heads of one layer, from its `at` and `head` on. Each
    process of a decode shard gets the heads that it has. Frames of the group's own exchange go
    first: a deposit leaves when none of them is being sent. Layers wait for deposits that are too
    far behind (`Backlog`). What this process keeps itself is not sent. Where CSA's blocks are
    coded, deposits are too.

    Args:
        attend: the attention itself.
        tasks: runs the sends; it ends when they are done, and fails if one fails.
        spans: the rank's token spans; its tensors hold their rows in this order.
        targets: which shard keeps which span of the prompt.
        share: the share of the model's heads that this process has.
        pages: the pages of this process, for what stays here.
    """

    def __init__(
        self,
        attend: Attention,
        group: Group,
        tasks: asyncio.TaskGroup,
        spans: Sequence[Span],
        targets: Sequence[Target],
        share: Share,
        pages: LocalPages,
    ) -> None:
        self._own = pages
        self._attend = attend
        self._group = group
        self._tasks = tasks
        selection = group.scheme.selection
        self._is_coded = selection is not None and selection.steps is not None
        self._pieces: list[Piece] = []
        kv_heads = group.config.kv_heads * share.size
        first = 0
        for span in spans:
            for target in targets:
                common = span & target.span
                if common.tokens:
                    row = first + common.start - span.start
                    rows = slice(row, row + common.tokens)
                    for peer, head, heads in owners(target.peers, share, kv_heads):
                        self._pieces.append(Piece(peer, common.start, head, rows, heads))
            first += span.tokens
        self.sent_bytes = 0
        self.saved_bytes = 0
        """By lossless packing."""

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        await self._group.backlog.catch_up(layer)
        self.begin(layer, k, v, q)
        return (await self._attend(layer, q, k, v)).out

    def begin(self, layer: int, k: Tensor, v: Tensor, q: Tensor | None = None) -> None:
        """Keep a layer's keys and values, or begin to send them.

        Args:
            q: the queries of their tokens, which coded keys need.
        """
        queries = q[-coded_kv.LAST_QUERIES :] if self._is_coded and q is not None else None
        for piece in self._pieces:
            parts = k[piece.rows, piece.heads], v[piece.rows, piece.heads]
            if piece.peer == self._group.name:
                self._own.keep(self._group.key, layer, piece.start, piece.head, *parts)
                continue
            task = self._tasks.create_task(self._send(piece, layer, parts, queries))
            self._group.backlog.add(task, layer, sum(part.nbytes for part in parts))

    async def _send(
        self, piece: Piece, layer: int, parts: tuple[Tensor, Tensor], queries: Tensor | None
    ) -> None:
        if queries is None:
            carried, saved = await self._group.packed(layer, parts)
        else:
            carried, saved = await self._coded(piece, layer, parts, queries), 0
        await self._group.quiet()
        nbytes = await self._group.send_to(
            (piece.peer,), "deposit", layer, piece.start, carried, head=piece.head
        )
        self.sent_bytes += nbytes
        self.saved_bytes += saved

    async def _coded(
        self, piece: Piece, layer: int, parts: tuple[Tensor, Tensor], queries: Tensor
    ) -> Sequence[Tensor]:
        group = self._group
        per_kv_head = group.config.heads // group.config.kv_heads
        heads = slice(piece.heads.start * per_kv_head, piece.heads.stop * per_kv_head)
        k, v, q = await group.down(*parts, queries[:, heads])
        return await group.compute(
            partial(coded_kv.pack, k, v, q, piece.start, group.config), layer
        )


def owners(peers: Sequence[Peer], share: Share, kv_heads: int) -> list[tuple[str, int, slice]]:
    """The processes of a shard that have any of the KV heads of `share`.

    Returns:
        For each: its name, the first common head in the whole model, the common heads in `share`.
    """
    mine = share.of(kv_heads)
    found = []
    for rank, peer in enumerate(peers):
        common = mine & Share(rank, len(peers)).of(kv_heads)
        if common.tokens:
            heads = slice(common.start - mine.start, common.stop - mine.start)
            found.append((peer.name, common.start, heads))
    return found
