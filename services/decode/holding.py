"""The KV of requests on this shard: pages taken, filled, given back."""

import asyncio
import logging
from typing import Self

from torch import Tensor

from sps2.common.errors import Cancelled, Refused
from sps2.common.messages import Hold
from sps2.common.messages import Holding as Held
from sps2.common.model.llama import Llama
from sps2.common.model.pages import PagePool, SequencePages
from sps2.common.spans import Span, pages_for
from sps2.common.transport.frame import Frame
from sps2.common.transport.inbox import Inbox
from sps2.common.transport.plane import Plane

log = logging.getLogger(__name__)

Key = tuple[str, int]
"""(request, epoch)"""

WAIT_FOR_PAGES_S = 5.0
"""A lease may be granted a moment before its pages' last user has let go of them here."""


class Holding:
    """One request's span on this shard; `filled` is set once every layer of it has arrived."""

    def __init__(
        self, key: Key, span: Span, pages: SequencePages, layers: int, heads: Span
    ) -> None:
        self.key = key
        self.span = span
        self.pages = pages
        self.filled = asyncio.Event()
        self.kv_bytes = 0
        self._layers = layers
        self._heads = heads
        self._missing = span.tokens * layers * heads.tokens
        self.inbox: Inbox | None = None
        if not self._missing:
            self.filled.set()

    async def complete(self) -> None:
        """Wait until every layer has arrived."""
        await self.filled.wait()

    def deposit(self, source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        """Write a frame of keys and values, each [tokens, heads, head_dim], to its pages."""
        k, v = tensors
        tokens, heads, _ = k.shape
        arrived = Span(frame.at, frame.at + tokens)
        of_heads = Span(frame.head, frame.head + heads)
        inside = (arrived & self.span) == arrived and (of_heads & self._heads) == of_heads
        if not inside or not 0 <= frame.layer < self._layers:
            log.error("%s sent KV of %s that does not belong here", source, self.key)
            return
        self.put(frame.layer, frame.at, frame.head, k, v)
        self.kv_bytes += frame.nbytes

    def put(self, layer: int, at: int, head: int, k: Tensor, v: Tensor) -> None:
        """Write keys and values, [tokens, heads, head_dim], from position and KV head on."""
        self.pages.write(layer, at, k, v, head - self._heads.start)
        tokens, heads, _ = k.shape
        self._missing -= tokens * heads
        if not self._missing:
            self.filled.set()


class Holdings:
    """Every holding of this shard, on the data loop.

    Args:
        layers: of the model.
        heads: KV heads that this process has.
    """

    def __init__(self, pool: PagePool, plane: Plane, layers: int, heads: Span) -> None:
        self._pool = pool
        self._plane = plane
        self._layers = layers
        self._heads = heads
        self._held: dict[Key, Holding] = {}
        self._freed = asyncio.Event()

    @classmethod
    def of(cls, model: Llama, pool: PagePool, plane: Plane) -> Self:
        """Those of a process that has this model, or this share of one."""
        heads = model.share.of(model.config.kv_heads * model.share.size)
        return cls(pool, plane, model.config.layers, heads)

    def get(self, key: Key) -> Holding | None:
        return self._held.get(key)

    async def hold(self, request: Hold) -> Holding:
        """Take pages for a request and accept its KV from now on, over the data plane or by `keep`.

        Raises:
            Refused: there are too few pages, and none came free in time.
        """
        key = (request.request, request.epoch)
        span = request.span
        pages = await self._take(pages_for(request.capacity, self._pool.page_tokens), span.start)
        holding = Holding(key, span, pages, self._layers, self._heads)
        if not request.in_place:
            holding.inbox = self._plane.open(*key, deliver=holding.deposit)
        self._held[key] = holding
        return holding

    def keep(self, key: Key, layer: int, at: int, head: int, k: Tensor, v: Tensor) -> None:
        """Write what this process computed itself; as `Holding.put`.

        Raises:
            Cancelled: the request is not held any more.
        """
        holding = self._held.get(key)
        if holding is None:
            raise Cancelled(f"request {key[0]} is not held in epoch {key[1]} any more")
        holding.put(layer, at, head, k, v)

    async def _take(self, pages: int, start: int) -> SequencePages:
        try:
            async with asyncio.timeout(WAIT_FOR_PAGES_S):
                while self._pool.free_pages < pages:
                    await self._freed.wait()
        except TimeoutError:
            raise Refused(f"{self._pool.free_pages} pages are free, {pages} are needed") from None
        return self._pool.take(pages, start)

    def release(self, key: Key) -> None:
        """Give a request's pages back; unknown ones are ignored."""
        holding = self._held.pop(key, None)
        if holding is None:
            return
        if holding.inbox is not None:
            holding.inbox.close()
        self._pool.give_back(holding.pages)
        self._freed.set()
        self._freed = asyncio.Event()

    def inventory(self) -> tuple[Held, ...]:
        """What is held now; safe to call from another thread."""
        return tuple(
            Held(*key, holding.span, holding.pages.pages)
            for key, holding in list(self._held.items())
        )
