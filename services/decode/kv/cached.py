"""Pages of this shard that have names: KV that outlives the request it was computed for."""

from collections.abc import Iterable, Mapping, Sequence

from sps2.common.errors import Refused
from sps2.common.model.pages import PagePool
from sps2.common.spans import Span


class CachedPages:
    """Names and their pages, on the data loop; the cache is one user of each page.

    What is evicted is the KV directory's choice; it hears of new names from the scheduler, and
    again from here once the request that made them is over, should the scheduler have failed.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._pages: dict[bytes, int] = {}
        self._news: dict[bytes, None] = {}
        self._missing: dict[bytes, None] = {}

    def names(self) -> tuple[bytes, ...]:
        """All of them, those first that were cached first; safe to call from another thread."""
        return tuple(self._pages)

    def idle(self) -> int:
        """How many of the pages no request uses; safe as `names` is."""
        return self._pool.users_of(tuple(self._pages.values())).count(1)

    def news(self) -> tuple[bytes, ...]:
        """Those of ended requests that `told` has not been told of; safe as `names` is."""
        return tuple(self._news)

    def missing(self) -> tuple[bytes, ...]:
        """What was to be shared and is not here, since `told`; safe as `names` is."""
        return tuple(self._missing)

    def told(self, names: Iterable[bytes]) -> None:
        """The directory heard of these."""
        for name in names:
            self._news.pop(name, None)
            self._missing.pop(name, None)

    def settle(self, names: Iterable[bytes]) -> None:
        """The request that made these pages is over."""
        self._news |= dict.fromkeys(name for name in names if name in self._pages)

    def add(self, pages: Mapping[bytes, int]) -> list[bytes]:
        """Cache pages that are in use; which of the names were new."""
        new = [name for name in pages if name not in self._pages]
        for name in new:
            self._pages[name] = pages[name]
        self._pool.share(pages[name] for name in new)
        return new

    def share(self, names: Sequence[bytes], spans: Sequence[Span]) -> dict[int, int]:
        """Become a user of the pages of `spans`, of a prompt with these names; pages by number.

        Raises:
            Refused: one of them is not cached here.
        """
        tokens = self._pool.page_tokens
        numbers = [n for span in spans for n in range(span.start // tokens, span.stop // tokens)]
        if missing := [names[n] for n in numbers if names[n] not in self._pages]:
            self._missing |= dict.fromkeys(missing)
            raise Refused("the prefix is not cached here any more")
        pages = {number: self._pages[names[number]] for number in numbers}
        self._pool.share(pages.values())
        return pages

    def drop(self, names: Iterable[bytes]) -> None:
        """Forget names; unknown ones are ignored."""
        for name in names:
            self._news.pop(name, None)
            if (page := self._pages.pop(name, None)) is not None:
                self._pool.give_back([page])
