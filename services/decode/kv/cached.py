"""The cached pages of a shard: KV that outlives the request it was computed for."""

from collections.abc import Iterable, Mapping, Sequence

from sps2.common.errors import Refused
from sps2.common.model.pages import PagePool
from sps2.common.spans import Span


class CachedPages:
    """Page hashes and their pages, on the data loop; the cache is one user of each page.

    The KV directory chooses what is evicted. The scheduler reports new hashes to it; this shard
    reports them again once their request is over, in case the scheduler failed.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._pages: dict[bytes, int] = {}
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

    def add(self, pages: Mapping[bytes, int]) -> list[bytes]:
        """Cache pages that are in use; returns the hashes that are new."""
        new = [page_hash for page_hash in pages if page_hash not in self._pages]
        for page_hash in new:
            self._pages[page_hash] = pages[page_hash]
        self._pool.share(pages[page_hash] for page_hash in new)
        return new

    def share(self, hashes: Sequence[bytes], spans: Sequence[Span]) -> dict[int, int]:
        """Become a user of the cached pages in `spans` of a prompt; returns pages by page number.

        Args:
            hashes: of all pages of the prompt, in their order.

        Raises:
            Refused: one of them is not cached here.
        """
        tokens = self._pool.page_tokens
        numbers = [n for span in spans for n in range(span.start // tokens, span.stop // tokens)]
        if missing := [hashes[n] for n in numbers if hashes[n] not in self._pages]:
            self._missing |= dict.fromkeys(missing)
            raise Refused("the prefix is not cached here any more")
        pages = {number: self._pages[hashes[number]] for number in numbers}
        self._pool.share(pages.values())
        return pages

    def drop(self, hashes: Iterable[bytes]) -> None:
        """Drop pages from the cache; unknown hashes are ignored."""
        for page_hash in hashes:
            self._news.pop(page_hash, None)
            if (page := self._pages.pop(page_hash, None)) is not None:
                self._pool.give_back([page])
