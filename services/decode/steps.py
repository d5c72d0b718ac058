"""A decode step on all processes of a shard: the leader announces it, the followers run it too."""

import asyncio
import logging
from collections.abc import Sequence

from torch import Tensor

from sps2.common.errors import Cancelled, PeerLost
from sps2.common.messages import Peer, Token
from sps2.common.model.llama import Llama
from sps2.common.model.pages import PagePool
from sps2.common.transport.frame import Frame, frame_for
from sps2.common.transport.plane import Plane
from sps2.services.decode.frame_rows import pack, unpack_keys
from sps2.services.decode.kv.holding import Key
from sps2.services.decode.remote.exchange import ANSWER_S, Exchange, Failed, NotHeld
from sps2.services.decode.remote.sharded_attention import SplitAttention
from sps2.services.decode.sequence import Sequence as Running
from sps2.services.gpu_faults import end_if_poisoned
from sps2.services.tasks import gather_all, root_cause

log = logging.getLogger(__name__)


def lost_by(batch: Sequence[Running], error: BaseException) -> list[Key]:
    """The requests that cannot go on after a failed step: those that lost some of their KV.

    Empty if another process of this shard failed: that process reports them.
    """
    keys = [each.holding.key for each in batch]
    match error:
        case Cancelled():
            return []
        case NotHeld(keys=gone) | Failed(keys=gone):
            return gone
        case PeerLost(peer=peer):
            return [each.holding.key for each in batch if peer in each.holders] or keys
    return keys


class Leading:
    """The leader's side of a step; without followers it does nothing.

    One frame announces a step: the newest tokens, their positions, and their requests. A follower
    answers only if the step failed, with the requests that it cannot go on with.
    """

    def __init__(self, plane: Plane, followers: Sequence[Peer]) -> None:
        self._plane = plane
        self._names = [peer.name for peer in followers]
        self._failed: dict[tuple[str, int], asyncio.Future[list[Key]]] = {}
        for peer in followers:
            plane.introduce(peer)
        if followers:
            plane.serve("step", self._on_answer)

    async def begin(self, step: int, keys: Sequence[Key], ids: Tensor, positions: Tensor) -> None:
        """Have the followers run a step."""
        loop = asyncio.get_running_loop()
        self._failed = {(name, step): loop.create_future() for name in self._names}
        tensors = (ids, positions, pack(keys))
        frame = frame_for("step", (), (), 0, step, tensors)
        await self._plane.send_all(self._names, frame, tensors)

    async def rest(self, hidden: Tensor) -> Tensor:
        """The hidden states of a step after all layers of the model, from those after the layers of
        this process."""
        return hidden

    async def failed(self) -> list[Key]:
        """The requests that followers cannot go on with, after a step whose layers failed."""
        try:
            async with asyncio.timeout(ANSWER_S):
                reports = await gather_all(*self._failed.values())
        except TimeoutError:
            log.error("a follower did not say why a step failed")
            return []
        return [key for report in reports for key in report]

    def _on_answer(self, source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        report = self._failed.get((source, frame.at))
        if report is not None and not report.done():
            report.set_result(unpack_keys(tensors[0]))


class Following:
    """A follower's side of a step: the same layers on its heads, and its share of the logits."""

    def __init__(self, model: Llama, plane: Plane, pool: PagePool, exchange: Exchange) -> None:
        self._model = model
        self._plane = plane
        self._pool = pool
        self._exchange = exchange
        self.sequences: dict[Key, Running] = {}
        """Requests that a step may include."""
        self._steps: asyncio.Queue[tuple[str, Frame, tuple[Tensor, ...]]] = asyncio.Queue()
        plane.serve("step", lambda *step: self._steps.put_nowait(step))

    def leave(self, key: Key) -> None:
        """Remove a request that has ended."""
        self.sequences.pop(key, None)
        self._exchange.give_up(self.sequences)

    async def run(self) -> None:
        """Run the leader's steps in order; never returns."""
        while True:
            source, frame, tensors = await self._steps.get()
            batch: list[Running] = []
            try:
                await self.step(frame, tensors, batch)
            except Exception as failure:
                end_if_poisoned(failure)
                error = root_cause(failure)
                if not isinstance(error, Cancelled | PeerLost):
                    log.error("a decode step failed", exc_info=error)
                await self._report(self.leader(source), frame.at, lost_by(batch, error))

    async def step(self, frame: Frame, tensors: tuple[Tensor, ...], batch: list[Running]) -> None:
        """Run a step.

        Args:
            tensors: the newest tokens, their positions, and their packed requests.
            batch: is filled with these requests.
        """
        ids, positions, _ = tensors
        turn = self._model.turn(len(ids), 1)
        assert turn is not None
        with turn:
            self.begin(batch, *tensors)
            attend = SplitAttention(self._model.config, self._pool, self._exchange, batch, frame.at)
            ids, positions = self._exchange.device.up((ids, positions))
            hidden = await self._model.step(ids, positions, attend, turn)
            await self._model.scores(hidden, turn=turn)

    def begin(self, batch: list[Running], ids: Tensor, positions: Tensor, keys: Tensor) -> None:
        """Fill a step's batch, whose requests get their newest tokens."""
        batch += [self.sequences[key] for key in unpack_keys(keys)]
        for each, *token in zip(batch, ids.tolist(), positions.tolist(), strict=True):
            each.last = Token(token[1] - each.prompt_tokens, token[0])

    def leader(self, source: str) -> str:
        """The leader, by the process that a step came from."""
        return source

    async def _report(self, leader: str, step: int, lost: list[Key]) -> None:
        tensors = (pack(lost),)
        await self._plane.send(leader, frame_for("step", (), (), 0, step, tensors), tensors)
