"""Continuous batching: requests join and leave the running batch between any two steps."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor

from sps2.common.errors import Cancelled, Internal, Invalid, PeerLost, ServiceError, Unsound
from sps2.common.messages import Token
from sps2.common.model.attend import Attend
from sps2.common.model.llama import Llama
from sps2.common.model.pages import PagePool
from sps2.common.model.sampler import draw, needed
from sps2.services.decode.kv.holding import Key
from sps2.services.decode.remote.exchange import Exchange
from sps2.services.decode.remote.sharded_attention import SplitAttention
from sps2.services.decode.sequence import Owned
from sps2.services.decode.steps import Leading, lost_by
from sps2.services.gpu_faults import end_if_poisoned
from sps2.services.tasks import root_cause

log = logging.getLogger(__name__)

Emit = Callable[[list[tuple[Key, Token]]], None]


class StepPasses(Protocol):
    """Forward passes that decode steps can share with prefills; see `prefill.passes.Passes`."""

    @property
    def takes_steps(self) -> bool: ...
    async def step(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor: ...
    def look(self) -> None: ...


class Batch:
    """The running batch: the requests that this shard owns. Lives on the data loop.

    Args:
        leading: has the other processes of this shard run each step too.
        emit: called with the tokens of every step.
    """

    def __init__(
        self, model: Llama, pool: PagePool, exchange: Exchange, leading: Leading, emit: Emit
    ) -> None:
        self._model = model
        self._pool = pool
        self._exchange = exchange
        self._leading = leading
        self._emit = emit
        self.passes: StepPasses | None = None
        """Of the prefills of this process; run a step together with one that wants that."""
        self._running: dict[Key, Owned] = {}
        self._in_step: set[Key] = set()
        self._stepping = asyncio.Lock()
        self._occupied = asyncio.Event()
        self._steps = 0
        self._tokens = 0

    def counters(self) -> dict[str, float]:
        """Decode steps so far, and the tokens that they generated."""
        return {"decode_steps": float(self._steps), "decode_tokens": float(self._tokens)}

    async def generate(self, sequence: Owned) -> None:
        """Run a request to its end.

        Raises:
            Cancelled: the request left the batch before its end.
            PeerLost: a shard that holds KV of the request is gone.
            Internal, Unsound: a step failed, or no token could be drawn.
            Invalid: the request itself leaves no token to draw, or needs too much work.
        """
        key = sequence.holding.key
        self._running[key] = sequence
        sequence.ask_for_pages()
        self._occupied.set()
        try:
            await sequence.ended
        finally:
            await self.leave(key)

    def grown(self, key: Key) -> None:
        """A request has more pages now; it goes on if it has paused for want of them."""
        if sequence := self._running.get(key):
            sequence.grown()
            self._occupied.set()

    async def leave(self, key: Key) -> None:
        """Remove a request from the batch; returns once no step uses it any more."""
        if left := self._running.get(key):
            self._end(left, Cancelled(f"request {key[0]} was ended"))
        if key in self._in_step:
            self._exchange.give_up(self._running)
            async with self._stepping:
                return

    async def run(self) -> None:
        """Run decode steps while the batch has requests; never returns."""
        while True:
            if not self.has_steps:
                if self.passes is not None:
                    self.passes.look()
                self._occupied.clear()
                await self._occupied.wait()
            async with self._stepping:
                batch = self._ready()
                if not batch:
                    continue  # all requests left while this waited for the lock
                self._in_step = {each.holding.key for each in batch}
                logits = None
                try:
                    logits = await self._layers(batch)
                    await self._draw(batch, logits)
                except Exception as error:
                    end_if_poisoned(error)
                    elsewhere = [] if logits is not None else await self._leading.failed()
                    self._fail(batch, root_cause(error), elsewhere)
                finally:
                    self._in_step = set()

    @property
    def has_steps(self) -> bool:
        """Whether a step is under way or follows."""
        return bool(self._ready())

    def _ready(self) -> list[Owned]:
        """The requests that take part in the next step: those that have room for a token."""
        return [each for each in self._running.values() if each.has_room]

    async def _layers(self, batch: Sequence[Owned]) -> Tensor:
        self._steps += 1
        step = (
            torch.tensor([each.last.id for each in batch]),
            torch.tensor([each.position for each in batch]),
        )
        attend = SplitAttention(self._model.config, self._pool, self._exchange, batch, self._steps)
        keys = [each.holding.key for each in batch]
        turn = self._model.turn(len(batch), 1)
        with turn or nullcontext():
            await self._leading.begin(self._steps, keys, *step)
            ids, positions = self._exchange.device.up(step)
            if self.passes is not None and self.passes.takes_steps:
                hidden = await self.passes.step(ids, positions, attend)
            else:
                hidden = await self._model.step(ids, positions, attend, turn)
            hidden = await self._leading.rest(hidden)
            logits = await self._model.scores(hidden, turn=turn)
        assert logits is not None, "only a leader has a batch"
        return logits

    async def _draw(self, batch: Sequence[Owned], logits: Tensor) -> None:
        indices = [each.last.index + 1 for each in batch]
        samplers = [each.sampler for each in batch]
        best, scores = await self._exchange.device.down(needed(samplers, logits, indices))
        drawn = draw(samplers, best, scores, indices)

        emitted, now_s = [], time.monotonic()
        for each, token in zip(batch, drawn, strict=True):
            if each.ended.done() or self._running.get(each.holding.key) is not each:
                continue  # ended by its caller, whose task may not have left the batch yet
            if isinstance(token, Exception):
                self._end(each, _reported(token, "no token could be drawn"))
                continue
            each.last = token
            each.times.append(now_s)
            emitted.append((each.holding.key, token))
            if token.finish is not None:
                self._end(each)
            else:
                each.ask_for_pages()
        self._tokens += len(emitted)
        self._emit(emitted)

    def _end(self, sequence: Owned, error: ServiceError | None = None) -> None:
        """Take a request out of the batch, unless its caller has ended it already."""
        if self._running.get(sequence.holding.key) is sequence:
            del self._running[sequence.holding.key]
        if sequence.ended.done():
            return
        if error is None:
            sequence.ended.set_result(None)
        else:
            sequence.ended.set_exception(error)

    def _fail(self, batch: Sequence[Owned], error: BaseException, elsewhere: list[Key]) -> None:
        """Fail the requests that cannot go on after a failed step; the others run it again.

        Args:
            elsewhere: requests that other processes of this shard cannot go on with.
        """
        failed = {*lost_by(batch, error), *elsewhere}
        if isinstance(error, Cancelled):
            error = PeerLost("a holder", "a shard with KV of this request was lost")
        elif isinstance(error, PeerLost):
            error = PeerLost(error.peer, error.message)  # its subclasses do not cross the bus
        report = _reported(error, "a decode step failed")
        for each in batch:
            if not failed or each.holding.key in failed:
                self._end(each, report)


def _reported(error: BaseException, what: str) -> ServiceError:
    """The error that the caller of a request receives; faults of this shard are logged."""
    if isinstance(error, PeerLost | Invalid):
        return error
    log.error("%s", what, exc_info=error)
    if isinstance(error, Unsound):
        return error
    why = error if isinstance(error, Internal) else type(error).__name__
    return Internal(f"{what}: {why}")
