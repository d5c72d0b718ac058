"""Pages of this shard that have hashes: KV that outlives the request it was computed for."""

from collections.abc import Iterable, Mapping, Sequence

from sps2.common.errors import Refused
from sps2.common.model.pages import PagePool
from sps2.common.spans import Span


class CachedPages:
    """Names and their pages, on the data loop; the cache is one user of each page.

    What is evicted is the KV directory's choice; it hears of new hashes from the scheduler, and
    again from here once the request that made them is over, should the scheduler have failed.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._pages: dict[bytes, int] = {}
        self._news: dict[bytes, None] = {}
        self._missing: dict[bytes, None] = {}

    def hashes(self) -> tuple[bytes, ...]:
        """All of them, those first that were cached first; safe to call from another thread."""
        return tuple(self._pages)

    def idle(self) -> int:
        """How many of the pages no request uses; safe as `hashes` is."""
        return self._pool.users_of(tuple(self._pages.values())).count(1)

    def news(self) -> tuple[bytes, ...]:
        """Those of ended requests that `told` has not been told of; safe as `hashes` is."""
        return tuple(self._news)

    def missing(self) -> tuple[bytes, ...]:
        """What was to be shared and is not here, since `told`; safe as `hashes` is."""
        return tuple(self._missing)

    def told(self, hashes: Iterable[bytes]) -> None:
        """The directory heard of these."""
        for page_hash in hashes:
            self._news.pop(page_hash, None)
            self._missing.pop(page_hash, None)

    def settle(self, hashes: Iterable[bytes]) -> None:
        """The request that made these pages is over."""
        self._news |= dict.fromkeys(page_hash for page_hash in hashes if page_hash in self._pages)

    def add(self, pages: Mapping[bytes, int]) -> list[bytes]:
        """Cache pages that are in use; which of the hashes were new."""
        new = [page_hash for page_hash in pages if page_hash not in self._pages]
        for page_hash in new:
            self._pages[page_hash] = pages[page_hash]
        self._pool.share(pages[page_hash] for page_hash in new)
        return new

    def share(self, hashes: Sequence[bytes], spans: Sequence[Span]) -> dict[int, int]:
        """Become a user of the pages of `spans`, of a prompt with these hashes; pages by number.

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
        """Forget hashes; unknown ones are ignored."""
        for page_hash in hashes:
            self._news.pop(page_hash, None)
            if (page := self._pages.pop(page_hash, None)) is not None:
                self._pool.give_back([page])
