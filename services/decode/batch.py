"""Continuous batching: requests join and leave the running batch between any two steps."""

import asyncio
import logging
from collections.abc import Callable, Sequence

import torch

from sps2.common.errors import Internal, PeerLost
from sps2.common.messages import Token
from sps2.common.model.llama import Llama
from sps2.common.model.pages import PagePool
from sps2.common.model.sample import draw
from sps2.services.decode.exchange import Exchange
from sps2.services.decode.holding import Key
from sps2.services.decode.sequence import Sequence as Running
from sps2.services.decode.split import SplitAttention
from sps2.services.tasks import root_cause

log = logging.getLogger(__name__)

Emit = Callable[[list[tuple[Key, Token]]], None]


class Batch:
    """The requests that this shard owns, on the data loop.

    Args:
        emit: given the tokens of every step.
    """

    def __init__(self, model: Llama, pool: PagePool, exchange: Exchange, emit: Emit) -> None:
        self._model = model
        self._pool = pool
        self._exchange = exchange
        self._emit = emit
        self._running: dict[Key, Running] = {}
        self._in_step: set[Key] = set()
        self._stepping = asyncio.Lock()
        self._occupied = asyncio.Event()
        self._steps = 0

    async def generate(self, sequence: Running) -> None:
        """Run a request to its end.

        Raises:
            PeerLost: a shard with KV of it is gone.
        """
        key = sequence.holding.key
        self._running[key] = sequence
        self._occupied.set()
        try:
            await sequence.ended
        finally:
            await self.leave(key)

    async def leave(self, key: Key) -> None:
        """Take a request out; returns when no step uses it any more."""
        self._running.pop(key, None)
        if key in self._in_step:
            async with self._stepping:
                return

    async def run(self) -> None:
        """Step for as long as anything runs; never returns."""
        while True:
            if not self._running:
                self._occupied.clear()
                await self._occupied.wait()
            async with self._stepping:
                batch = list(self._running.values())
                self._in_step = {each.holding.key for each in batch}
                try:
                    await self._step(batch)
                except Exception as error:
                    self._fail(batch, root_cause(error))
                finally:
                    self._in_step = set()

    async def _step(self, batch: Sequence[Running]) -> None:
        self._steps += 1
        ids = torch.tensor([each.last.id for each in batch])
        positions = torch.tensor([each.position for each in batch])
        attend = SplitAttention(self._model.config, self._pool, self._exchange, batch, self._steps)
        hidden = await self._model.forward(ids, positions, attend)
        logits = self._model.logits(hidden)
        indices = [each.last.index + 1 for each in batch]
        tokens = draw([each.sampler for each in batch], logits, indices)

        emitted = []
        for each, token in zip(batch, tokens, strict=True):
            if each.holding.key not in self._running:
                continue
            each.last = token
            emitted.append((each.holding.key, token))
            if token.finish is not None:
                del self._running[each.holding.key]
                each.ended.set_result(None)
        self._emit(emitted)

    def _fail(self, batch: Sequence[Running], error: BaseException) -> None:
        """A lost holder fails the requests it holds for; the step is run again for the others."""
        failed = list(batch)
        if isinstance(error, PeerLost):
            failed = [each for each in batch if error.peer in each.holders] or failed
        else:
            log.error("a decode step failed", exc_info=error)
            error = Internal(f"a decode step failed: {type(error).__name__}")
        for each in failed:
            self._running.pop(each.holding.key, None)
            if not each.ended.done():
                each.ended.set_exception(error)
