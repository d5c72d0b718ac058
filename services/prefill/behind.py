"""Work of a prefill rank beside its layers: pushes, answers, deposits; bounded."""

import asyncio

LAYERS = 4
BYTES = 64 << 20


class Behind:
    """How far such work may lag behind the layers.

    A layer begins once all work of the layers `LAYERS` before it is done, unless all that is left
    holds less than `BYTES`.

    That cannot hang a group. Of its ranks, take one that is in the earliest layer. Its old work is
    with ranks that are in this layer or later: they have sent and read all that there is of layers
    before, since no method leaves a layer before it has what it reads of it. So that work ends, and
    the rank goes on. Deposits are taken as they come.
    """

    def __init__(self) -> None:
        self._left: dict[asyncio.Task[None], tuple[int, int]] = {}

    @property
    def nbytes(self) -> int:
        """Of the tensors that unfinished work holds."""
        return sum(nbytes for _, nbytes in self._left.values())

    def add(self, task: asyncio.Task[None], layer: int, nbytes: int) -> None:
        """Work of a layer has begun, which holds tensors of so many bytes until it is done."""
        self._left[task] = layer, nbytes
        task.add_done_callback(self._left.pop)

    async def catch_up(self, layer: int) -> None:
        """Wait until `layer` may begin."""
        while self.nbytes > BYTES:
            old = [task for task, (of, _) in self._left.items() if of <= layer - LAYERS]
            if not old:
                return
            await asyncio.wait(old, return_when=asyncio.FIRST_COMPLETED)
