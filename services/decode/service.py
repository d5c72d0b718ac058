"""A decode shard on the bus: holds KV, runs the requests it owns, hands out their tokens."""

import asyncio
import struct
import time
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from sps2.common.errors import Cancelled, PeerLost, Refused, ServiceError
from sps2.common.grammar import Grammars, Matcher
from sps2.common.messages import (
    Assist,
    Cache,
    Decode,
    Decoded,
    Done,
    Expect,
    Filled,
    Follow,
    Grow,
    Held,
    Hold,
    Short,
    Token,
)
from sps2.common.model.llama import Llama
from sps2.common.model.pages import PagePool
from sps2.common.model.sampler import Sampler
from sps2.common.page_hashes import page_hashes
from sps2.common.tracing import FORGETFUL, Recorder
from sps2.common.transport.plane import Plane
from sps2.common.vital import vital
from sps2.kernels import State
from sps2.kernels.gpu.graphs import Graphs
from sps2.services.data_loop import DataLoop
from sps2.services.decode.batch import Batch, StepPasses
from sps2.services.decode.kv.disk import DiskPages
from sps2.services.decode.kv.holding import Holdings, Key
from sps2.services.decode.remote.exchange import Exchange
from sps2.services.decode.remote.prefix import Prefixes
from sps2.services.decode.reports import Reports
from sps2.services.decode.sequence import Owned
from sps2.services.decode.stage_steps import FirstStage
from sps2.services.decode.steps import Leading
from sps2.services.decode.token_paces import token_paces
from sps2.services.decode.tokens import TokenLog
from sps2.services.tasks import emitted_by, end, forever, gather_all
from sps2.services.tp_processes import Led, opened

KEEP_TOKENS_S = 30.0
"""How long the tokens of an ended request can still be fetched."""


class DecodeService:
    """Handlers of a decode shard; create it on the control loop, and call `start` before use.

    Args:
        data: the event loop that `plane` runs on.
        led: the other processes of this shard.
        traces: records where the time of each request goes.
        grammars: of the model, for answers that follow one.
        disk: where cached pages are kept too.
    """

    def __init__(
        self,
        model: Llama,
        plane: Plane,
        pool: PagePool,
        data: DataLoop,
        led: Sequence[Led] = (),
        traces: Recorder = FORGETFUL,
        grammars: Grammars | None = None,
        disk: DiskPages | None = None,
    ) -> None:
        self._grammars = grammars
        self._disk = disk
        self._model = model
        self._plane = plane
        self._pool = pool
        self._data = data
        self._traces = traces
        self._followers = [each.bus for each in led]
        self._planes = [each.plane for each in led]
        self._control = asyncio.get_running_loop()
        self._logs: dict[Key, TokenLog] = {}
        self._generating: dict[Key, Decode] = {}
        """Requests whose answer is not cached yet."""

    async def start(self) -> None:
        """Build what lives on the data loop and begin stepping."""
        self._busy = await self._data.clock()
        await self._data.run(self._build())
        self.reports = Reports(
            self._holdings, self._data, self._followers, self._disk, self._pool.page_tokens
        )

    async def _build(self) -> None:
        config = self._model.config
        if self._model.device.type == "cuda":
            self._model.record(Graphs(self._model.device))
        self._holdings = Holdings.of(self._model, self._pool, self._plane, self._disk)
        self._holdings.prepare()
        exchange = Exchange(config, self._plane, self._pool, self._holdings)
        self._prefixes = Prefixes(config, self._plane, self._pool, self._holdings)
        if self._model.stage is None:
            leading = Leading(self._plane, self._planes)
        else:
            leading = FirstStage(self._model, self._plane, self._planes)
        self._batch = Batch(self._model, self._pool, exchange, leading, self._emit)
        stepping = asyncio.get_running_loop().create_task(self._batch.run(), name="stepping")
        self._stepping = vital(stepping)

    async def close(self) -> None:
        await self._data.run(end(self._stepping))
        if self._disk is not None:
            await self._data.run(self._disk.close())

    def share(self, passes: StepPasses) -> None:
        """Run decode steps in the passes of prefills that want that; call it after `start`."""
        self._batch.passes = passes

    async def hold(self, request: Hold) -> AsyncGenerator[Held | Filled, None]:
        key = (request.request, request.epoch)
        log = self._logs[key] = TokenLog()
        try:
            async with opened(self._followers, request) as streams:
                try:
                    holding = await self._data.run(self._holdings.hold(request))
                    for stream in streams:
                        await anext(stream)
                    yield Held(len(holding.own))
                    nbytes = await self._data.run(self._holdings.complete(key))
                    if holding.first_s:
                        self._traces.trail(request.request, request.traceparent).add(
                            "take KV",
                            holding.first_s,
                            holding.last_s,
                            holding.busy_s,
                            tokens=request.span.tokens,
                            bytes=nbytes,
                        )
                    yield Filled(nbytes + await _received(streams))
                    await forever()
                finally:
                    try:
                        with suppress(ServiceError):
                            await self._cache_answer(key)
                    finally:
                        # before followers release it: a step that they are about to run may use it
                        await self._data.run(self._release(key))
        except Refused:
            await self.reports.doubt(request)
            raise
        finally:
            log.fail(Cancelled(f"request {request.request} was ended"))
            self._control.call_later(KEEP_TOKENS_S, self._forget, key, log)

    async def expect(self, request: Expect) -> AsyncGenerator[Held | Filled, None]:
        key = (request.request, request.epoch)
        async with opened(self._followers, request) as streams:
            holding = await self._data.run(self._holdings.expect(request))
            for stream in streams:
                await anext(stream)
            yield Held(len(holding.own))
            nbytes = await self._data.run(self._holdings.complete(key))
            yield Filled(nbytes + await _received(streams))

    async def decode(self, request: Decode) -> AsyncIterator[Short | Decoded]:
        async def job(emit: Callable[[Short | Decoded], None]) -> None:
            emit(await self._decode(request, lambda: emit(Short())))

        async for item in emitted_by(job):
            yield item

    async def grow(self, request: Grow) -> Done:
        key = (request.request, request.epoch)
        await gather_all(*(follower.call(request) for follower in self._followers))
        await self._data.run(self._grow(key, request.capacity))
        return Done()

    async def _grow(self, key: Key, capacity: int) -> None:
        await self._holdings.grow(key, capacity)
        self._batch.grown(key)

    async def _decode(self, request: Decode, ask: Callable[[], None]) -> Decoded:
        key = (request.request, request.epoch)
        log = self._logs.get(key)
        if log is None:
            raise self._not_here(request)
        trail = self._traces.trail(request.request, request.traceparent)
        times = array("d")
        try:
            with trail.during("decode", holders=len(request.holders)) as steps:
                begun_s = time.monotonic()
                steps.later(lambda parent: token_paces(parent, begun_s, list(times)))
                await self._prepare(request)
                self._generating[key] = request
                matcher = await self._matcher(request)
                sequence = await self._data.run(self._generate(request, matcher, times, ask))
            hashes = await self._cache_answer(key)
        except ServiceError as error:
            log.fail(error)
            raise
        last = sequence.last
        assert last.finish is not None
        stage = self._model.stage  # all layers move the same number of bytes, and all processes
        parts, own = (stage.whole, stage.layers.tokens) if stage else (1 + len(self._followers), 1)
        q_bytes, state_bytes = (
            nbytes * parts // own for nbytes in (sequence.q_bytes, sequence.state_bytes)
        )
        return Decoded(last.index + 1, last.finish, q_bytes, state_bytes, hashes)

    async def follow(self, request: Follow) -> AsyncIterator[Token]:
        log = self._logs.get((request.request, request.epoch))
        if log is None:
            raise self._not_here(request)
        async for token in log.follow(request.start):
            yield token

    def _not_here(self, request: Decode | Follow) -> PeerLost:
        """The request was released, or this shard restarted: the request must be planned again."""
        why = f"request {request.request} is not held in epoch {request.epoch}"
        return PeerLost(self._plane.name, f"{self._plane.name}: {why}")

    def keep(self, key: Key, layer: int, at: int, head: int, k: Tensor, v: Tensor) -> None:
        """See `Holdings.keep`; call it on the data loop."""
        self._holdings.keep(key, layer, at, head, k, v)

    def attend(self, key: Key, layer: int, at: int, head: int, q: Tensor, stop: int) -> State:
        """See `Prefixes.attend`; may be called on any thread."""
        return self._prefixes.attend(key, layer, at, head, q, stop)

    def decoding(self) -> bool:
        """See `Batch.has_steps`; call it on the data loop."""
        return self._batch.has_steps

    def counters(self) -> dict[str, float]:
        """For heartbeats: pages, idle cached pages, requests owned and held, decode steps."""
        return {
            "kv_pages": float(self._pool.pages),
            "kv_pages_free": float(self._pool.free_pages),
            "kv_pages_idle": float(self._holdings.cached.idle()),
            "kv_pages_cached": float(len(self._holdings.cached.hashes())),
            "kv_hits": float(self._holdings.cached.hits),
            "owned": float(len(self._generating)),
            "held": float(len(self._holdings.inventory())),
            **self._batch.counters(),
            **self._busy.counters(),
        }

    def tokens(self) -> dict[str, int]:
        """Tokens so far of each answer that this shard generates, by request."""
        return {
            key[0]: request.sampling.answered + 1 + self._logs[key].count
            for key, request in self._generating.items()
        }

    async def _prepare(self, request: Decode) -> None:
        """Give the followers what they need for the steps of a request."""
        stages = () if self._model.stage is None else (self._plane.peer, *self._planes)
        await gather_all(
            *(
                follower.call(
                    Assist(
                        request.request,
                        request.epoch,
                        len(request.prompt) // 4 - request.sampling.answered,
                        tuple(peers[rank] for peers in request.holders),
                        stages,
                    )
                )
                for rank, follower in enumerate(self._followers, 1)
            )
        )

    async def _matcher(self, request: Decode) -> Matcher | None:
        """Where the answer is in its grammar, before its first token here; None for free text."""
        sampling = request.sampling
        if self._grammars is None or not sampling.grammar:
            return None
        prompt = array("i", request.prompt)
        answer = prompt[len(prompt) - sampling.answered :]
        return await self._grammars.begin(sampling.grammar, answer)

    async def _generate(
        self,
        request: Decode,
        matcher: Matcher | None,
        times: "array[float]",
        ask: Callable[[], None],
    ) -> Owned:
        holding = self._holdings.get((request.request, request.epoch))
        if holding is None:
            raise self._not_here(request)
        holders = [peers[0] for peers in request.holders]
        for peer in holders:
            self._plane.introduce(peer)
        prompt = torch.frombuffer(bytearray(request.prompt), dtype=torch.int32).long()
        sampler = Sampler(request.sampling, prompt, matcher)
        sampler.seen(request.first.id)
        sequence = Owned(
            holding,
            tuple(peer.name for peer in holders),
            len(prompt) - request.sampling.answered,
            request.first,
            sampler,
            asyncio.get_running_loop().create_future(),
            len(prompt) + request.sampling.left,
            lambda: self._control.call_soon_threadsafe(ask),
            times,
        )
        await self._batch.generate(sequence)
        return sequence

    async def _release(self, key: Key) -> None:
        await self._batch.leave(key)
        self._holdings.release(key)

    async def _cache_answer(self, key: Key) -> tuple[bytes, ...]:
        """Cache the pages that the answer has filled, wherever it ended; returns their hashes."""
        request = self._generating.pop(key, None)
        if request is None or not request.parent:
            return ()
        answer = [request.first.id, *self._logs[key].ids()]  # the last one has no KV
        tokens = request.prompt + struct.pack(f"<{len(answer) - 1}i", *answer[:-1])
        first = len(request.prompt) // (4 * self._pool.page_tokens)
        rest = tokens[4 * first * self._pool.page_tokens :]
        hashes = page_hashes(request.parent, rest, self._pool.page_tokens)
        if hashes:
            cache = Cache(request.request, request.epoch, hashes, first)
            await gather_all(*(follower.call(cache) for follower in self._followers))
            await self._data.run(self._cache(cache))
        return hashes

    async def _cache(self, request: Cache) -> None:
        self._holdings.cache((request.request, request.epoch), request.hashes, request.first)

    def _emit(self, tokens: list[tuple[Key, Token]]) -> None:
        self._control.call_soon_threadsafe(self._log_tokens, tokens)

    def _log_tokens(self, tokens: list[tuple[Key, Token]]) -> None:
        for key, token in tokens:
            if log := self._logs.get(key):
                log.add(token)

    def _forget(self, key: Key, log: TokenLog) -> None:
        if self._logs.get(key) is log:
            del self._logs[key]


async def _received(streams: Sequence[AsyncIterator[Held | Filled]]) -> int:
    """The bytes of KV that the followers have received."""
    items = [await anext(stream) for stream in streams]
    return sum(item.kv_bytes for item in items if isinstance(item, Filled))
