"""Sends a prefill rank's keys and values to decode shards, layer by layer, in the background."""

import asyncio
from collections.abc import Sequence

from torch import Tensor

from sps2.common.messages import Target
from sps2.common.model.attend import Attend
from sps2.common.spans import Span
from sps2.services.prefill.group import Group


class Deposit:
    """The `Attend` of a rank whose keys and values are kept elsewhere: ships them, then attends.

    A frame holds one run of consecutive positions of one layer, which its `at` begins. Frames of
    the group's own exchange go first: a deposit leaves when none of them is under way.

    Args:
        attend: the attention proper.
        tasks: the sends run in it; it ends when they are done, and a failed one fails it.
        spans: the rank's token spans; its tensors hold their rows in this order.
        targets: which shard keeps which span of the prompt.
    """

    def __init__(
        self,
        attend: Attend,
        group: Group,
        tasks: asyncio.TaskGroup,
        spans: Sequence[Span],
        targets: Sequence[Target],
    ) -> None:
        self._attend = attend
        self._group = group
        self._tasks = tasks
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

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for peer, start, rows in self._pieces:
            self._tasks.create_task(self._send(peer, layer, start, k[rows], v[rows]))
        return await self._attend(layer, q, k, v)

    async def _send(self, peer: str, layer: int, start: int, k: Tensor, v: Tensor) -> None:
        await self._group.quiet()
        nbytes = await self._group.send_to(peer, "kv", layer, start, (k, v))
        self.sent_bytes += nbytes
