"""Sends a prefill rank's keys and values to decode shards, layer by layer, in the background."""

import asyncio
from collections.abc import Sequence

from torch import Tensor

from sps2.common.messages import Target
from sps2.common.spans import Span
from sps2.common.transport.frame import frame_for
from sps2.common.transport.plane import Plane


class Deposit:
    """Ships what `put` is given while the next layer computes; a failed send fails `group`.

    A frame holds one run of consecutive positions, which its `at` begins.

    Args:
        group: the task group that the sends run in; it ends when they are done.
        spans: the rank's token spans; tensors given to `put` hold their rows in this order.
        targets: which shard keeps which span of the prompt.
    """

    def __init__(
        self,
        plane: Plane,
        group: asyncio.TaskGroup,
        key: tuple[str, int],
        spans: Sequence[Span],
        targets: Sequence[Target],
    ) -> None:
        self._plane = plane
        self._group = group
        self._key = key
        self._pieces: list[tuple[str, int, slice]] = []
        first = 0
        for span in spans:
            for target in targets:
                common = span & target.span
                if common.tokens:
                    row = first + common.start - span.start
                    rows = slice(row, row + common.tokens)
                    self._pieces.append((target.peer.name, common.start, rows))
            first += span.tokens
        self.sent_bytes = 0

    def put(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Send one layer's k and v, [tokens, kv_heads, head_dim], to where they belong."""
        for peer, start, rows in self._pieces:
            self._group.create_task(self._send(peer, layer, start, k[rows], v[rows]))

    async def _send(self, peer: str, layer: int, start: int, k: Tensor, v: Tensor) -> None:
        request, epoch = self._key
        frame = frame_for("kv", (request,), (epoch,), layer, start, (k, v))
        self.sent_bytes += frame.nbytes
        await self._plane.send(peer, frame, (k, v))
