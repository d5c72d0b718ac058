"""The KV of requests on this shard: pages reserved or shared, filled, given back."""

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Self

import torch
from torch import Tensor

from sps2.common.errors import Cancelled, Internal, Invalid, PeerLost, Refused, ServiceError
from sps2.common.messages import Evicted, Expect, Hold
from sps2.common.messages import Holding as Held
from sps2.common.model.config import ModelConfig
from sps2.common.model.llama import Llama
from sps2.common.model.pages import PagePool, SequencePages
from sps2.common.spans import Span, page_numbers, pages_for
from sps2.common.transport import lossless
from sps2.common.transport.expected import Like, check
from sps2.common.transport.frame import Frame
from sps2.common.transport.plane import Plane
from sps2.services import coded_kv
from sps2.services.decode.kv.cached import CachedPages
from sps2.services.decode.kv.disk import DiskPages
from sps2.services.decode.kv.page_store import used_at
from sps2.services.decode.kv.restoring import Restoring
from sps2.services.gpu_faults import end_if_poisoned
from sps2.services.memory import back

log = logging.getLogger(__name__)

Key = tuple[str, int]
"""(request, epoch)"""

AHEAD_TOKENS = 4096
"""Tokens whose pages are backed by memory before they arrive."""
WAIT_FOR_PAGES_S = 5.0
"""A lease may be granted a moment before the last user of its pages has released them here."""


class Holding:
    """One request's KV on this shard; `filled` is set once all that is expected has arrived.

    Args:
        span: positions whose KV arrives, in one or several chunks; they follow all that is shared.
        pages: those of the span and its growth, and the cached ones that the request shares.
        own: those of `pages` that are reserved for this request, by page number; first those that
            were read from disk.
        hashes: of the prompt's full pages, from the first on.
    """

    def __init__(
        self,
        key: Key,
        span: Span,
        pages: SequencePages,
        own: dict[int, int],
        layers: int,
        heads: Span,
        hashes: Sequence[bytes] = (),
    ) -> None:
        self.key = key
        self.span = span
        self.pages = pages
        self.own = own
        self.since_ns = time.time_ns()
        self.own_hashes: list[bytes] = []
        """Hashes of its own pages that are cached."""
        self.filled = asyncio.Event()
        self.kv_bytes = 0
        self.first_s = self.last_s = self.busy_s = 0.0
        """When the first frame arrived, when the last was written, and how long writing took."""
        self.failed: ServiceError | None = None
        self.hashes = hashes
        self.chunk = Span(span.start, span.start)
        """The part of the span that is expected now, or came last."""
        self._sources: Collection[str] = ()
        self._layers = layers
        self._heads = heads
        self._missing = 0
        self._came: set[tuple[int, int, int]] = set()
        """Layer, position and head of each deposit."""
        self.filled.set()

    def expect(self, stop: int, sources: Collection[str]) -> None:
        """The KV of the next chunk comes, of the positions of the span up to `stop`.

        Args:
            sources: data-plane names of the processes that send it. If one is lost first, or sends
                what cannot be kept, `failed` and `filled` are set.
        """
        self.chunk = Span(self.chunk.stop, max(self.chunk.stop, min(stop, self.span.stop)))
        self._sources = sources
        self._missing += self.chunk.tokens * self._layers * self._heads.tokens
        if self._missing:
            self.filled.clear()

    def deposit(self, source: str, frame: Frame, k: Tensor, v: Tensor) -> None:
        """Write a frame of keys and values, each [tokens, heads, head_dim], to its pages.

        Raises:
            Invalid: the frame is not for this holding, not from one of its sources, or a duplicate.
        """
        tokens, heads, _ = k.shape
        arrived = Span(frame.at, frame.at + tokens)
        of_heads = Span(frame.head, frame.head + heads)
        piece = (frame.layer, frame.at, frame.head)
        inside = (arrived & self.chunk) == arrived and (of_heads & self._heads) == of_heads
        expected = not self._sources or source in self._sources
        if not (inside and expected and 0 <= frame.layer < self._layers) or piece in self._came:
            raise Invalid(
                f"positions {arrived} of heads {of_heads} of layer {frame.layer} do not belong here"
            )
        self._came.add(piece)
        start_s = time.monotonic()
        self.put(frame.layer, frame.at, frame.head, k, v)
        self.first_s, self.last_s = self.first_s or start_s, time.monotonic()
        self.busy_s += self.last_s - start_s
        self.kv_bytes += frame.nbytes

    def lose(self, peer: str) -> None:
        """A peer was lost: what it sent last may not have arrived."""
        self.fail(peer, PeerLost(peer, f"{peer} was lost while KV of {self.key[0]} came from it"))

    def fail(self, peer: str, error: ServiceError) -> None:
        """A peer will not deliver all of its KV; ignored if none is expected from it."""
        if peer in self._sources and not self.filled.is_set():
            self.failed = error
            self.filled.set()

    def put(self, layer: int, at: int, head: int, k: Tensor, v: Tensor) -> None:
        """Write keys and values, [tokens, heads, head_dim], from position `at` and `head` on."""
        self.pages.write(layer, at, k, v, head - self._heads.start)
        tokens, heads, _ = k.shape
        self._missing -= tokens * heads
        if not self._missing:
            self.filled.set()


class Holdings:
    """Every holding of this shard, on the data loop.

    Args:
        heads: KV heads that this process has.
        dtype: the model's, in which keys and values arrive.
        disk: where cached pages are kept too.
    """

    def __init__(
        self,
        pool: PagePool,
        plane: Plane,
        config: ModelConfig,
        heads: Span,
        dtype: torch.dtype,
        disk: DiskPages | None = None,
    ) -> None:
        self._pool = pool
        self._plane = plane
        self._config = config
        self.heads = heads
        self.dtype = dtype
        self._held: dict[Key, Holding] = {}
        self._freed = asyncio.Event()
        self.cached = CachedPages(pool, disk)
        self._disk = disk
        self._restoring = Restoring(self.cached, disk, self._reserve, self._give_back)
        if disk is not None:
            disk.start(self.cached.page_of, self._notify_freed)
        self._wanted = Like(dtype, (None, None, config.head_dim))
        self._unpacking: set[asyncio.Task[None]] = set()
        plane.serve("deposit", self._on_deposit, self._held)
        plane.on_gone(self._on_gone)

    @classmethod
    def of(cls, model: Llama, pool: PagePool, plane: Plane, disk: DiskPages | None = None) -> Self:
        """The holdings of a process that has this model, or this share of one."""
        heads = model.share.of(model.config.kv_heads * model.share.size)
        return cls(pool, plane, model.config, heads, model.dtype, disk)

    def prepare(self) -> None:
        """Back the pages used next with memory, in another thread; a GPU's pages have theirs."""
        if self._pool.device.type != "cpu":
            return
        pieces = self._pool.ahead(AHEAD_TOKENS // self._pool.page_tokens)
        addresses = [(piece.data_ptr(), piece.nbytes) for piece in pieces]
        asyncio.get_running_loop().run_in_executor(None, back, addresses)

    def get(self, key: Key) -> Holding | None:
        return self._held.get(key)

    async def hold(self, request: Hold) -> Holding:
        """Reserve pages for a request and accept its KV, over the data plane or by `keep`.

        Cached pages that are on disk only are read first.

        Raises:
            Refused: too few pages are free after `WAIT_FOR_PAGES_S`, or pages that the request
                shares are not cached here, or cannot be read.
            PeerLost: a shard that the KV comes from was lost and cannot be reached again.
        """
        await self._plane.reach(request.sources)
        key, span, tokens = _key(request), request.span, self._pool.page_tokens
        layers, hashes = self._config.layers, request.hashes
        shares = {n: hashes[n] for n in page_numbers(request.shared, tokens)}
        on_disk = {n: hashes[n] for n in page_numbers(request.from_disk, tokens)}
        own = await self._restoring.restore(on_disk)
        new = [each for n, each in on_disk.items() if self.cached.page_of(each) == own.get(n)]
        try:
            reserved = await self._reserve(pages_for(request.capacity, tokens))
            own |= dict(enumerate(reserved, span.start // tokens))
            shared = self.cached.share({n: h for n, h in shares.items() if n not in own})
        except BaseException:
            self.cached.settle(new)
            self._give_back(own.values())
            raise
        if self._disk is not None and shares:
            self._disk.use(list(shares.values()))
        pages = SequencePages(self._pool, shared | own)
        holding = Holding(key, span, pages, own, layers, self.heads, hashes)
        holding.own_hashes += new
        self._expect(holding, request)
        self._held[key] = holding
        return holding

    async def expect(self, request: Expect) -> Holding:
        """Accept the KV of a request's next chunk.

        Raises:
            PeerLost: a shard that it comes from was lost and cannot be reached again.
            Cancelled: the request is not held any more.
        """
        await self._plane.reach(request.sources)
        holding = self._of(_key(request))
        self._expect(holding, request)
        return holding

    def _expect(self, holding: Holding, request: Hold | Expect) -> None:
        stop = holding.span.stop if request.stop is None else request.stop
        holding.expect(stop, [source.name for source in request.sources])

    def _of(self, key: Key) -> Holding:
        if (holding := self._held.get(key)) is None:
            raise Cancelled(f"request {key[0]} is not held in epoch {key[1]} any more")
        return holding

    def _on_deposit(self, source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        if lossless.are_packed(tensors):
            task = asyncio.get_running_loop().create_task(self._unpack(source, frame, tensors))
            self._unpacking.add(task)
            task.add_done_callback(self._unpacking.discard)
        else:
            self._take(source, frame, tensors)

    async def _unpack(self, source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        """Take packed or coded KV, unpacked on a thread: decode steps go on meanwhile."""
        work = partial(coded_kv.unpack, tensors, frame.at, self._config, self.dtype)
        try:
            unpacked = await asyncio.to_thread(work)
        except Invalid as error:
            self._fail(source, frame, error)
        else:
            self._take(source, frame, unpacked)

    def _take(self, source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        holding = self._held.get((frame.requests[0], frame.epochs[0]))
        if holding is None:  # released while the KV was unpacked
            return
        try:
            check("KV", tensors, (self._wanted,) * 2)
            k, v = tensors
            check("V", (v,), (Like(k.dtype, tuple(k.shape)),))
            holding.deposit(source, frame, *self._plane.device.up((k, v)))
        except Exception as error:  # whoever waits for the KV must learn of it
            end_if_poisoned(error)
            self._fail(source, frame, error)

    def _fail(self, source: str, frame: Frame, error: Exception) -> None:
        """Have whoever waits for the KV learn why it cannot be kept."""
        what = f"KV of request {frame.requests[0]} from {source}"
        known = isinstance(error, Invalid)
        why = error if known else type(error).__name__
        log.error("%s could not be kept: %s", what, why, exc_info=None if known else error)
        if holding := self._held.get((frame.requests[0], frame.epochs[0])):
            holding.fail(source, Internal(f"{what} could not be kept: {why}"))

    def keep(self, key: Key, layer: int, at: int, head: int, k: Tensor, v: Tensor) -> None:
        """Write KV that this process computed itself; see `Holding.put`.

        Raises:
            Cancelled: the request is not held any more.
        """
        self._of(key).put(layer, at, head, k, v)

    async def _reserve(self, pages: int) -> list[int]:
        try:
            async with asyncio.timeout(WAIT_FOR_PAGES_S):
                while self._pool.free_pages < pages:
                    await self._freed.wait()
        except TimeoutError:
            raise Refused(f"{self._pool.free_pages} pages are free, {pages} are needed") from None
        return self._pool.take(pages)

    async def complete(self, key: Key) -> int:
        """Wait until all that is expected has arrived, and cache the full pages.

        Returns:
            The bytes received since the request is held.

        Raises:
            Cancelled: the request was ended.
            PeerLost: a shard that the KV comes from was lost.
            Internal: what a shard sent could not be kept.
        """
        holding = self._held.get(key)
        if holding is not None:
            await holding.filled.wait()
            if holding.failed is not None:
                raise holding.failed
            first = holding.chunk.start // self._pool.page_tokens
            stop = -(-holding.chunk.stop // self._pool.page_tokens)
            self.cache(key, holding.hashes[first:stop], first)
        if holding is None or self._held.get(key) is not holding:
            raise Cancelled(f"request {key[0]} was ended")
        return holding.kv_bytes

    def cache(self, key: Key, hashes: Sequence[bytes], first: int = 0) -> None:
        """Cache the own pages of a request among those that `hashes` are for, from `first` on.

        The pages must be full in every layer. One whose hash is cached already is not cached again.
        """
        if holding := self._held.get(key):
            numbers = {each: n for n, each in enumerate(hashes, first) if n in holding.own}
            own = {each: holding.own[n] for each, n in numbers.items()}
            used_ns = {each: used_at(holding.since_ns, n) for each, n in numbers.items()}
            holding.own_hashes += self.cached.add(own, used_ns)

    async def grow(self, key: Key, capacity: int) -> None:
        """Reserve pages until the span of a request may have `capacity` tokens.

        Raises:
            Refused: too few pages are free after `WAIT_FOR_PAGES_S`.
            Cancelled: the request is not held any more.
        """
        holding, reserved = self._held.get(key), list[int]()
        if holding is not None:
            start = holding.span.start // self._pool.page_tokens
            first = max([start - 1, *holding.own]) + 1
            wanted = pages_for(capacity, self._pool.page_tokens) - (first - start)
            reserved = await self._reserve(max(0, wanted))
        if holding is None or self._held.get(key) is not holding:
            self._give_back(reserved)
            raise Cancelled(f"request {key[0]} is not held in epoch {key[1]} any more")
        new = dict(enumerate(reserved, first))
        holding.own.update(new)
        holding.pages.add(new)
        self.prepare()

    def evict(self, evicted: Evicted) -> None:
        """Drop pages from the cache; they are free once no request uses them. See `Evicted`."""
        self.cached.drop(evicted.hashes)
        if self._disk is not None and evicted.pins:
            self._disk.pin(evicted.pins)
        if self._disk is not None and evicted.unused_s is not None:
            self._disk.erase(evicted.unused_s)
        self._notify_freed()

    def release(self, key: Key) -> None:
        """Give a request's pages back; unknown requests are ignored."""
        holding = self._held.pop(key, None)
        if holding is None:
            return
        self.cached.settle(holding.own_hashes)
        self._give_back(holding.pages.table.values())
        self.prepare()

    def inventory(self) -> tuple[Held, ...]:
        """What is held now, without cached pages; safe to call from another thread."""
        return tuple(
            Held(*key, holding.span, len(holding.own) - len(holding.own_hashes))
            for key, holding in list(self._held.items())
        )

    def _on_gone(self, peer: str) -> None:
        for holding in self._held.values():
            holding.lose(peer)

    def _give_back(self, pages: Iterable[int]) -> None:
        self._pool.give_back(pages)
        self._notify_freed()

    def _notify_freed(self) -> None:
        self._freed.set()
        self._freed = asyncio.Event()


def _key(request: Hold | Expect) -> Key:
    return request.request, request.epoch
