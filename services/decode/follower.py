"""A follower process of a decode shard: runs its leader's steps on its own heads or layers."""

import asyncio
from collections.abc import AsyncGenerator

from torch import Tensor

from sps2.common.errors import PeerLost
from sps2.common.messages import Assist, Cache, Done, Evict, Expect, Filled, Grow, Held, Hold, Token
from sps2.common.model.llama import Llama
from sps2.common.model.pages import PagePool
from sps2.common.transport.plane import Plane
from sps2.common.vital import vital
from sps2.kernels import State
from sps2.services.data_loop import DataLoop
from sps2.services.decode.kv.disk import DiskPages
from sps2.services.decode.kv.holding import Holdings, Key
from sps2.services.decode.remote.exchange import Exchange
from sps2.services.decode.remote.prefix import Prefixes
from sps2.services.decode.sequence import Sequence
from sps2.services.decode.stage_steps import LaterStage
from sps2.services.decode.steps import Following
from sps2.services.tasks import end, forever


class FollowerService:
    """Handlers that the leader calls; call `start` before use.

    Args:
        data: the event loop that `plane` runs on.
        disk: where cached pages are kept too.
    """

    def __init__(
        self,
        model: Llama,
        plane: Plane,
        pool: PagePool,
        data: DataLoop,
        disk: DiskPages | None = None,
    ) -> None:
        self._disk = disk
        self._model = model
        self._plane = plane
        self._pool = pool
        self._data = data

    async def start(self) -> None:
        """Build what lives on the data loop and begin to run the leader's steps."""
        await self._data.run(self._build())

    async def _build(self) -> None:
        self._holdings = Holdings.of(self._model, self._pool, self._plane, self._disk)
        self._holdings.prepare()
        config = self._model.config
        self._prefixes = Prefixes(config, self._plane, self._pool, self._holdings)
        exchange = Exchange(config, self._plane, self._pool, self._holdings)
        kind = Following if self._model.stage is None else LaterStage
        self._following = kind(self._model, self._plane, self._pool, exchange)
        stepping = asyncio.get_running_loop().create_task(self._following.run(), name="stepping")
        self._stepping = vital(stepping)

    async def close(self) -> None:
        await self._data.run(end(self._stepping))
        if self._disk is not None:
            await self._data.run(self._disk.close())

    async def hold(self, request: Hold) -> AsyncGenerator[Held | Filled, None]:
        key = (request.request, request.epoch)
        try:
            holding = await self._data.run(self._holdings.hold(request))
            yield Held(len(holding.own))
            yield Filled(await self._data.run(self._holdings.complete(key)))
            await forever()
        finally:
            self._data.post(lambda: self._release(key))

    async def expect(self, request: Expect) -> AsyncGenerator[Held | Filled, None]:
        holding = await self._data.run(self._holdings.expect(request))
        yield Held(len(holding.own))
        complete = self._holdings.complete(holding.key)
        yield Filled(await self._data.run(complete))

    async def cache(self, request: Cache) -> Done:
        await self._data.run(self._cache(request))
        return Done()

    async def _cache(self, request: Cache) -> None:
        self._holdings.cache((request.request, request.epoch), request.hashes, request.first)

    async def grow(self, request: Grow) -> Done:
        key = (request.request, request.epoch)
        await self._data.run(self._holdings.grow(key, request.capacity))
        return Done()

    async def evict(self, request: Evict) -> Done:
        self._data.post(lambda: self._holdings.evict(request.evicted))
        return Done()

    async def assist(self, request: Assist) -> Done:
        await self._data.run(self._expect(request))
        return Done()

    async def _expect(self, request: Assist) -> None:
        key = (request.request, request.epoch)
        holding = self._holdings.get(key)
        if holding is None:
            why = f"request {request.request} is not held in epoch {request.epoch}"
            raise PeerLost(self._plane.name, f"{self._plane.name}: {why}")
        for peer in (*request.holders, *request.stages):
            self._plane.introduce(peer)
        if isinstance(self._following, LaterStage):
            self._following.stages = [peer.name for peer in request.stages]
        holders = tuple(peer.name for peer in request.holders)
        none_yet = Token(0, 0)
        self._following.sequences[key] = Sequence(holding, holders, request.prompt_tokens, none_yet)

    def keep(self, key: Key, layer: int, at: int, head: int, k: Tensor, v: Tensor) -> None:
        """See `Holdings.keep`; call it on the data loop."""
        self._holdings.keep(key, layer, at, head, k, v)

    def attend(self, key: Key, layer: int, at: int, head: int, q: Tensor, stop: int) -> State:
        """See `Prefixes.attend`; may be called on any thread."""
        return self._prefixes.attend(key, layer, at, head, q, stop)

    def decoding(self) -> bool:
        """No prefill here shares its passes with steps."""
        return False

    def _release(self, key: Key) -> None:
        self._following.leave(key)
        self._holdings.release(key)
