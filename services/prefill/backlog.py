"""Bounds the work of a prefill rank beside its layers: pushes, answers, deposits."""

import asyncio

LAYERS = 4
"""A layer waits for background work of layers this many or more before it."""
BYTES = 64 << 20
"""Unfinished work of at most this many bytes delays no layer."""


class Backlog:
    """Limits how far background work may lag behind the layers.

    A layer begins once the work of all layers at least `LAYERS` before it is done, unless the
    unfinished work holds at most `BYTES`.

    This cannot deadlock a group. Consider a rank in the earliest layer. Its old work involves ranks
    that are in this layer or a later one. They have sent and received everything for the earlier
    layers, since no method leaves a layer before it has received all that it reads there. So the
    old work ends, and the rank goes on. Deposits are accepted whenever they arrive.
    """

    def __init__(self) -> None:
        self._left: dict[asyncio.Task[None], tuple[int, int]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that unfinished work holds."""
        return sum(nbytes for _, nbytes in self._left.values())

    def add(self, task: asyncio.Task[None], layer: int, nbytes: int) -> None:
        """Register work of a layer; it holds tensors of `nbytes` bytes until it is done."""
        self._left[task] = layer, nbytes
        task.add_done_callback(self._left.pop)

    async def catch_up(self, layer: int) -> None:
        """Wait until `layer` may begin."""
        while self.nbytes > BYTES:
            old = [task for task, (of, _) in self._left.items() if of <= layer - LAYERS]
            if not old:
                return
            await asyncio.wait(old, return_when=asyncio.FIRST_COMPLETED)
