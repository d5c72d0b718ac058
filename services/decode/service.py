"""A decode shard on the bus: holds KV, runs the requests it owns, hands out their tokens."""

import asyncio
from collections.abc import AsyncIterator

import torch

from sps2.common.errors import Cancelled, Invalid, ServiceError
from sps2.common.messages import (
    Decode,
    Decoded,
    Filled,
    Follow,
    Held,
    Hold,
    Holding,
    Token,
)
from sps2.common.model.llama import Llama
from sps2.common.model.pages import PagePool
from sps2.common.model.sample import Sampler
from sps2.common.transport.plane import Plane
from sps2.services.decode.batch import Batch
from sps2.services.decode.exchange import Exchange
from sps2.services.decode.holding import Holdings, Key
from sps2.services.decode.sequence import Sequence
from sps2.services.decode.tokens import TokenLog
from sps2.services.shard import DataLoop
from sps2.services.tasks import forever

KEEP_TOKENS_S = 30.0
"""How long the tokens of an ended request can still be fetched."""


class DecodeService:
    """Handlers of a decode shard; must be made on the control loop, `start`ed before use.

    Args:
        data: the loop that `plane` lives on.
    """

    def __init__(self, model: Llama, plane: Plane, pool: PagePool, data: DataLoop) -> None:
        self._model = model
        self._plane = plane
        self._pool = pool
        self._data = data
        self._control = asyncio.get_running_loop()
        self._logs: dict[Key, TokenLog] = {}
        self._releasing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Build what lives on the data loop and begin stepping."""
        await self._data.run(self._build())

    async def _build(self) -> None:
        config = self._model.config
        self._holdings = Holdings(self._pool, self._plane, config.layers)
        exchange = Exchange(config, self._plane, self._pool, self._holdings)
        self._batch = Batch(self._model, self._pool, exchange, self._emit)
        self._stepping = asyncio.get_running_loop().create_task(self._batch.run())

    async def close(self) -> None:
        async def stop() -> None:
            self._stepping.cancel()
            await asyncio.wait({self._stepping})

        await self._data.run(stop())

    async def hold(self, request: Hold) -> AsyncIterator[Held | Filled]:
        key = (request.request, request.epoch)
        log = self._logs[key] = TokenLog()
        try:
            holding = await self._data.run(self._holdings.hold(request))
            yield Held(holding.pages.pages)
            await self._data.run(_set(holding.filled))
            yield Filled(holding.kv_bytes)
            await forever()
        finally:
            self._data.post(lambda: self._release(key))
            log.fail(Cancelled(f"request {request.request} was ended"))
            self._control.call_later(KEEP_TOKENS_S, self._forget, key, log)

    async def decode(self, request: Decode) -> Decoded:
        key = (request.request, request.epoch)
        log = self._logs.get(key)
        if log is None:
            raise Invalid(f"request {request.request} is not held here in epoch {request.epoch}")
        try:
            sequence = await self._data.run(self._generate(request))
        except ServiceError as error:
            log.fail(error)
            raise
        last = sequence.last
        assert last.finish is not None
        return Decoded(last.index + 1, last.finish, sequence.q_bytes, sequence.state_bytes)

    async def follow(self, request: Follow) -> AsyncIterator[Token]:
        log = self._logs.get((request.request, request.epoch))
        if log is None:
            raise Invalid(f"request {request.request} is not here in epoch {request.epoch}")
        async for token in log.follow(request.start):
            yield token

    def inventory(self) -> tuple[Holding, ...]:
        """What this shard holds, for the directory."""
        return self._holdings.inventory()

    async def _generate(self, request: Decode) -> Sequence:
        holding = self._holdings.get((request.request, request.epoch))
        if holding is None:
            raise Invalid(f"request {request.request} is not held here in epoch {request.epoch}")
        for peer in request.holders:
            self._plane.introduce(peer)
        prompt = torch.frombuffer(bytearray(request.prompt), dtype=torch.int32).long()
        sampler = Sampler(request.sampling, prompt)
        sampler.seen(request.first.id)
        sequence = Sequence(
            holding,
            tuple(peer.name for peer in request.holders),
            len(prompt),
            request.first,
            sampler,
            asyncio.get_running_loop().create_future(),
        )
        await self._batch.generate(sequence)
        return sequence

    def _release(self, key: Key) -> None:
        async def release() -> None:
            await self._batch.leave(key)
            self._holdings.release(key)

        task = asyncio.get_running_loop().create_task(release())
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    def _emit(self, tokens: list[tuple[Key, Token]]) -> None:
        self._control.call_soon_threadsafe(self._log_tokens, tokens)

    def _log_tokens(self, tokens: list[tuple[Key, Token]]) -> None:
        for key, token in tokens:
            if log := self._logs.get(key):
                log.add(token)

    def _forget(self, key: Key, log: TokenLog) -> None:
        if self._logs.get(key) is log:
            del self._logs[key]


async def _set(event: asyncio.Event) -> None:
    await event.wait()
