"""The second tier of a shard's cached pages: written to disk behind requests, read before them."""

import asyncio
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch

from sps2.common.messages import OnDisk
from sps2.common.model.pages import PagePool
from sps2.common.models import fingerprint, locate
from sps2.common.page_hashes import HASH_BYTES
from sps2.services.decode.kv.page_file import PageFormat
from sps2.services.decode.kv.page_store import PageStore
from sps2.services.shard import ReadyShard
from sps2.services.tasks import end

log = logging.getLogger(__name__)

READERS = 2
"""Threads that read pages; a request's pages are split among them."""
BATCH = 16
"""Pages that are written at a time; they cannot be freed meanwhile."""
GUESSED_BYTES_PER_S = 200e6
"""How fast pages are read, until some were."""
LATEST = 0.3
"""Weight of the latest read in the measured rate."""
FLUSH_S = 3.0
"""How long a shard that ends goes on writing pages that are not on disk yet."""
NICENESS = 10
"""The priority of writing, below that of computing."""


class DiskPages:
    """Keeps full pages of a pool in a `PageStore`. On the data loop, but for what says otherwise.

    A page is written once it is cached, if it still is when its turn comes. A page that is evicted
    from memory stays on disk.

    A disk that fails costs no request: what cannot be read is computed again.
    """

    def __init__(self, pool: PagePool, store: PageStore) -> None:
        self._pool = pool
        self._store = store
        self._page_of: Callable[[bytes], int | None] = lambda page_hash: None
        self._freed: Callable[[], None] = lambda: None
        self._waiting: dict[bytes, int] = {}
        """Pages to write, with the time of their use in nanoseconds."""
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()
        self._readers = ThreadPoolExecutor(READERS, "kv-read")
        self._writer = ThreadPoolExecutor(1, "kv-write", _lower_priority)
        self._bytes_per_s = GUESSED_BYTES_PER_S
        self._writing: asyncio.Task[None] | None = None

    def start(self, page_of: Callable[[bytes], int | None], freed: Callable[[], None]) -> None:
        """Begin to write.

        Args:
            page_of: the page of the pool that is cached for a hash, if there is one.
            freed: called when pages that were being written may be free.
        """
        self._page_of, self._freed = page_of, freed
        self._writing = asyncio.get_running_loop().create_task(self._write(), name="writing KV")

    async def close(self) -> None:
        """Write what waits, for `FLUSH_S` at most, and give the folder free."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                await self._none.wait()
        self._waiting.clear()
        await self._none.wait()
        if self._writing is not None:
            await end(self._writing)
        for threads in (self._writer, self._readers):
            threads.shutdown(cancel_futures=True)
        self._store.close()

    def has(self, page_hash: bytes) -> bool:
        return page_hash in self._store

    def keep(self, hashes: Mapping[bytes, int]) -> None:
        """Write cached pages when there is time for it, each as last used at its time.

        Args:
            hashes: with times as of `PageStore.use`.
        """
        self._waiting |= hashes
        if self._waiting:
            self._some.set()
            self._none.clear()

    def use(self, hashes: Sequence[bytes]) -> None:
        """Pages of a prompt, in its order, are used from memory: their files stay longer."""
        self._writer.submit(self._store.use, hashes)

    async def read(self, pages: Mapping[bytes, int]) -> list[bytes]:
        """Read pages into reserved pages of the pool, by hash.

        When it is cancelled, it ends once nothing is written to the pool any more.

        Returns:
            The hashes of those that could not be read.
        """
        loop, begun_s = asyncio.get_running_loop(), time.monotonic()
        wanted = list(pages.items())
        share = -(-len(wanted) // READERS)
        parts = [wanted[first : first + share] for first in range(0, len(wanted), share)]
        stopped = threading.Event()
        reading = [loop.run_in_executor(self._readers, self._read, each, stopped) for each in parts]
        try:
            await asyncio.wait(reading)
        except asyncio.CancelledError:
            stopped.set()
            while not all(each.done() for each in reading):
                with suppress(asyncio.CancelledError):
                    await asyncio.wait(reading)
            raise
        lost = [page_hash for each in reading for page_hash in each.result()]
        count = len(pages) - len(lost)
        if count and (took_s := time.monotonic() - begun_s) > 0:
            rate = count * self._pool.payload_bytes / took_s
            self._bytes_per_s += LATEST * (rate - self._bytes_per_s)
        return lost

    def lose(self, hashes: Sequence[bytes]) -> None:
        """Delete pages; each is reported as gone. It may be called from any thread."""
        self._store.lose(hashes)

    def erase(self, unused_s: float) -> None:
        """Delete pages that were not used for so many seconds, soon. From any thread."""
        self._writer.submit(self._store.erase, unused_s)

    def pin(self, pins: Mapping[bytes, bool]) -> None:
        """Keep pages (true), or do so no longer, soon; see `PageStore.pin`. From any thread."""
        self._writer.submit(self._store.pin, pins)

    def all(self) -> OnDisk:
        """What is on disk, for the directory; may be called from any thread."""
        store = self._store
        return OnDisk(store.hashes(), (), self._read_page_s, store.pinned(), store.most_pinned)

    def news(self) -> OnDisk:
        """What came and went since the last report; may be called from any thread."""
        changes = self._store.changes()
        came = tuple(page_hash for page_hash, here in changes.items() if here)
        gone = tuple(page_hash for page_hash, here in changes.items() if not here)
        return OnDisk(came, gone, self._read_page_s)

    def reported(self, news: OnDisk) -> None:
        """The directory knows this; may be called from any thread."""
        came, gone = dict.fromkeys(news.hashes, True), dict.fromkeys(news.erased, False)
        self._store.reported([*came.items(), *gone.items()])

    def counters(self) -> dict[str, float]:
        """For heartbeats; may be called from any thread."""
        counts = dict(self._store.counters)
        return {
            "kv_disk_pages": float(self._store.pages),
            "kv_disk_bytes": float(self._store.nbytes),
            "kv_disk_pinned": float(len(self._store.pinned())),
            "kv_disk_hits": float(counts.get("hits", 0)),
            "kv_disk_read_bytes": float(counts.get("read", 0)),
            "kv_disk_written_bytes": float(counts.get("written", 0)),
            "kv_disk_damaged": float(counts.get("damaged", 0)),
            "kv_disk_unreadable": float(counts.get("unreadable", 0)),
            "kv_disk_unwritable": float(counts.get("unwritable", 0)),
        }

    @property
    def _read_page_s(self) -> float:
        return self._pool.payload_bytes / self._bytes_per_s

    def _read(self, pages: Sequence[tuple[bytes, int]], stopped: threading.Event) -> list[bytes]:
        lost = []
        for page_hash, page in pages:
            if stopped.is_set():
                break
            payload = self._store.read(page_hash)
            if payload is None:
                lost.append(page_hash)
            else:
                self._pool.fill(page, torch.frombuffer(payload, dtype=torch.uint8))
        return lost

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._some.wait()
            batch: list[tuple[bytes, int, int]] = []
            while self._waiting and len(batch) < BATCH:
                page_hash = next(iter(self._waiting))
                used_ns = self._waiting.pop(page_hash)
                page = self._page_of(page_hash)
                if page is not None and page_hash not in self._store:
                    batch.append((page_hash, page, used_ns))
            pages = [page for _, page, _ in batch]
            self._pool.share(pages)
            try:
                await loop.run_in_executor(self._writer, self._write_batch, batch)
            except Exception:
                log.exception("%d KV pages are not written", len(pages))
            self._pool.give_back(pages)
            self._freed()
            if not self._waiting:
                self._some.clear()
                self._none.set()

    def _write_batch(self, batch: Sequence[tuple[bytes, int, int]]) -> None:
        for page_hash, page, used_ns in batch:
            self._store.write(page_hash, self._pool.payload(page).numpy(), used_ns)


async def disk_for(shard: ReadyShard, pool: PagePool) -> DiskPages | None:
    """The pages on disk of this process; None if none are to be kept, or the folder is unusable.

    Its counters are added to the heartbeats.

    Raises:
        Invalid: another cluster uses the folder.
    """
    kv, config, share = shard.cluster.kv, shard.model.config, shard.model.share
    if not kv.disk_folder:
        return None
    stored = str(pool.layer(0)[0].dtype).removeprefix("torch.")
    depends_on = (
        await asyncio.to_thread(fingerprint, locate(shard.cluster.model)),
        str(shard.model.dtype),
        shard.cluster.quantize,
        stored,
        str(pool.page_tokens),
        str(share.size),
    )
    identity = hashlib.blake2b("\n".join(depends_on).encode(), digest_size=HASH_BYTES).digest()
    form = PageFormat(
        config.layers,
        config.kv_heads,
        pool.page_tokens,
        config.head_dim,
        stored,
        identity,
        pool.payload_bytes,
    )
    folder = _expanded(kv.disk_folder) / identity.hex() / shard.id
    most_bytes = int(kv.disk_gib * (1 << 30) / share.size)
    others = shard.about.counters
    try:
        store = await asyncio.to_thread(PageStore, folder, form, most_bytes)
    except OSError as error:
        log.warning("no KV pages are kept on disk: %s", error)
        shard.about.counters = lambda: others() | {"kv_disk_unwritable": 1.0}
        return None
    disk = DiskPages(pool, store)
    shard.about.counters = lambda: others() | disk.counters()
    log.info("KV pages on disk: %d in %s", store.pages, folder)
    return disk


def _expanded(folder: str) -> Path:
    return Path(folder).expanduser()


def _lower_priority() -> None:
    with suppress(AttributeError, OSError):  # where a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
