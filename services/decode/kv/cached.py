"""The cached pages of a shard: KV that outlives the request it was computed for."""

from collections.abc import Iterable, Mapping

from sps2.common.errors import Refused
from sps2.common.model.pages import PagePool
from sps2.services.decode.kv.disk import DiskPages

NO_TIMES: Mapping[bytes, int] = {}


class CachedPages:
    """Page hashes and their pages, on the data loop; the cache is one user of each page.

    The KV directory chooses what is evicted. The scheduler reports new hashes to it; this shard
    reports them again once their request is over, in case the scheduler failed.

    Args:
        disk: keeps the pages on disk too.
    """

    def __init__(self, pool: PagePool, disk: DiskPages | None = None) -> None:
        self._pool = pool
        self._disk = disk
        self._pages: dict[bytes, int] = {}
        self.hits = 0
        """How often a request shared a page."""
        self._news: dict[bytes, None] = {}
        self._missing: dict[bytes, None] = {}

    def hashes(self) -> tuple[bytes, ...]:
        """All cached hashes, oldest first; safe to call from another thread."""
        return tuple(self._pages)

    def idle(self) -> int:
        """How many cached pages no request uses; safe to call from another thread."""
        return self._pool.users_of(tuple(self._pages.values())).count(1)

    def news(self) -> tuple[bytes, ...]:
        """Hashes of ended requests, not `reported` yet; safe to call from another thread."""
        return tuple(self._news)

    def missing(self) -> tuple[bytes, ...]:
        """Hashes to share that are not cached here, not `reported` yet; as safe as `news`."""
        return tuple(self._missing)

    def reported(self, hashes: Iterable[bytes]) -> None:
        """These hashes were reported to the directory."""
        for page_hash in hashes:
            self._news.pop(page_hash, None)
            self._missing.pop(page_hash, None)

    def settle(self, hashes: Iterable[bytes]) -> None:
        """The request that cached these pages has ended: they are news for the directory."""
        self._news |= dict.fromkeys(page_hash for page_hash in hashes if page_hash in self._pages)

    def add(
        self, pages: Mapping[bytes, int], used_ns: Mapping[bytes, int] = NO_TIMES
    ) -> list[bytes]:
        """Cache pages that are in use; returns the hashes that are new.

        Args:
            used_ns: when each page that is to be kept on disk was used; see `page_store.used_at`.
        """
        new = [page_hash for page_hash in pages if page_hash not in self._pages]
        for page_hash in new:
            self._pages[page_hash] = pages[page_hash]
        self._pool.share(pages[page_hash] for page_hash in new)
        if self._disk is not None:
            self._disk.keep({each: used_ns[each] for each in new if each in used_ns})
        return new

    def page_of(self, page_hash: bytes) -> int | None:
        """The page of the pool that is cached for a hash."""
        return self._pages.get(page_hash)

    def share(self, hashes: Mapping[int, bytes]) -> dict[int, int]:
        """Become a user of cached pages; returns pages by page number.

        Args:
            hashes: by page number, in their order.

        Raises:
            Refused: one of them is not cached here.
        """
        self.miss(page_hash for page_hash in hashes.values() if page_hash not in self._pages)
        pages = {number: self._pages[page_hash] for number, page_hash in hashes.items()}
        self._pool.share(pages.values())
        self.hits += len(pages)
        return pages

    def miss(self, hashes: Iterable[bytes]) -> None:
        """Raises Refused if there are any: these pages are not here, which is to be reported."""
        if missing := tuple(hashes):
            self.doubt(missing)
            raise Refused("the prefix is not cached here any more")

    def doubt(self, hashes: Iterable[bytes]) -> None:
        """The directory is to know that these pages are not here."""
        self._missing |= dict.fromkeys(hashes)

    def drop(self, hashes: Iterable[bytes]) -> None:
        """Drop pages from the cache; unknown hashes are ignored."""
        for page_hash in hashes:
            self._news.pop(page_hash, None)
            if (page := self._pages.pop(page_hash, None)) is not None:
                self._pool.give_back([page])
