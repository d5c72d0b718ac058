"""A decode step on a pipeline of stages: a frame goes from stage to stage, and back to the first.

It has the hidden states, and which tokens of which requests they are of. A stage that fails reports
to the first the requests that it cannot go on with, as followers do that have other heads.
"""

import asyncio
from collections.abc import Sequence

import torch
from torch import Tensor

from sps2.common.errors import Cancelled, PeerLost
from sps2.common.messages import Peer
from sps2.common.model.llama import Llama
from sps2.common.transport.expected import Like, check_from
from sps2.common.transport.frame import Frame, frame_for
from sps2.common.transport.plane import Plane
from sps2.services.decode.frame_rows import pack, unpack_keys
from sps2.services.decode.kv.holding import Key
from sps2.services.decode.remote.sharded_attention import SplitAttention
from sps2.services.decode.sequence import Sequence as Running
from sps2.services.decode.steps import Following, Leading


class FirstStage(Leading):
    """The first stage's side of a step."""

    def __init__(self, model: Llama, plane: Plane, others: Sequence[Peer]) -> None:
        super().__init__(plane, others)
        self._model = model
        self._about: tuple[Tensor, ...] = ()
        self._step = 0
        self._hidden: asyncio.Future[Tensor] | None = None
        self._lost: list[Key] = []
        plane.on_gone(self._on_gone)

    async def begin(self, step: int, keys: Sequence[Key], ids: Tensor, positions: Tensor) -> None:
        self._about, self._step, self._lost = (ids, positions, pack(keys)), step, []

    async def rest(self, hidden: Tensor) -> Tensor:
        """Raises Cancelled if another stage cannot go on, PeerLost if one is gone."""
        coming = self._hidden = asyncio.get_running_loop().create_future()
        try:
            tensors = (hidden, *self._about)
            frame = frame_for("step", (), (), 0, self._step, tensors)
            await self._plane.send(self._names[0], frame, tensors)
            return self._plane.device.up((await coming,))[0]
        finally:
            self._hidden = None
            coming.cancel()

    async def failed(self) -> list[Key]:
        return self._lost

    def _on_answer(self, source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        coming = self._hidden
        if coming is None or coming.done() or frame.at != self._step:
            return
        if len(tensors) == 1 and tensors[0].dtype == torch.uint8:
            self._lost = unpack_keys(tensors[0])
            coming.set_exception(Cancelled(f"{source} cannot go on"))
            return
        size = self._model.config.hidden_size
        wanted = (Like(self._model.dtype, (len(self._about[0]), size)),)
        try:
            check_from(source, "step", tensors, wanted)
        except Exception as error:
            coming.set_exception(error)
        else:
            coming.set_result(tensors[0])

    def _on_gone(self, peer: str) -> None:
        if self._hidden is not None and peer in self._names and not self._hidden.done():
            self._hidden.set_exception(PeerLost(peer))


class LaterStage(Following):
    """The side of a stage after the first."""

    stages: Sequence[str] = ()
    """The stages of this shard on the data plane, in order."""

    async def step(self, frame: Frame, tensors: tuple[Tensor, ...], batch: list[Running]) -> None:
        hidden, *about = tensors
        ids, positions, _ = about
        self.begin(batch, *about)
        attend = SplitAttention(self._model.config, self._pool, self._exchange, batch, frame.at)
        size = self._model.config.hidden_size
        wanted = (Like(torch.float32, (len(ids), size)),)
        check_from("the stage before", "step", (hidden,), wanted)
        hidden, positions = self._exchange.device.up((hidden, positions))
        left = await self._model.step(hidden, positions, attend)
        stage = self._model.stage
        assert stage is not None
        after = self.stages[(stage.rank + 1) % stage.size]
        sent = (left,) if stage.is_last else (left, *about)
        await self._plane.send(after, frame_for("step", (), (), 0, frame.at, sent), sent)

    def leader(self, source: str) -> str:
        return self.stages[0]
