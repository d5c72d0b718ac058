"""Which shard has which page of the prefix cache, how many leases use it, which goes next."""

from collections import Counter
from collections.abc import Iterable, Sequence

from sps2.common.messages import CachedRun


class PageCache:
    """Cached pages of all shards, by their hashes. Pure, and constant in time per page.

    A page that no lease refers to is *idle*, and may be evicted: first the one that has been idle
    longest, and of pages that became so together the last of the prompt, without which those before
    it are still of use. A hash is on one shard only. References count whether or not the page is
    here: a directory that lost its memory may hear of a lease before it hears of the shard.
    """

    def __init__(self) -> None:
        self._shard: dict[bytes, str] = {}
        self._references: Counter[bytes] = Counter()
        self._pages: Counter[str] = Counter()
        self._idle: dict[str, dict[bytes, None]] = {}
        self.evicted_pages = 0

    def find(self, hashes: Sequence[bytes]) -> tuple[CachedRun, ...]:
        """Where the pages of a prompt are, from the first on, as far as they are cached."""
        runs: list[CachedRun] = []
        for page_hash in hashes:
            shard = self._shard.get(page_hash)
            if shard is None:
                break
            idle = page_hash in self._idle[shard]
            if runs and runs[-1].shard == shard:
                runs[-1] = CachedRun(shard, runs[-1].pages + 1, runs[-1].idle + idle)
            else:
                runs.append(CachedRun(shard, 1, int(idle)))
        return tuple(runs)

    def on(self, shard: str, hashes: Iterable[bytes]) -> bool:
        """Whether the shard has all of them."""
        return all(self._shard.get(page_hash) == shard for page_hash in hashes)

    def add(self, shard: str, hashes: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Take in pages of a prompt, in their order: which are new, which other shards have."""
        new = [page_hash for page_hash in hashes if page_hash not in self._shard]
        elsewhere = [each for each in hashes if self._shard.get(each, shard) != shard]
        idle = self._idle.setdefault(shard, {})
        for page_hash in reversed(new):
            self._shard[page_hash] = shard
            if not self._references[page_hash]:
                idle[page_hash] = None
        self._pages[shard] += len(new)
        return new, elsewhere

    def refer(self, hashes: Iterable[bytes]) -> None:
        """One more lease uses these."""
        for page_hash in hashes:
            self._references[page_hash] += 1
            if shard := self._shard.get(page_hash):
                self._idle[shard].pop(page_hash, None)

    def release(self, hashes: Sequence[bytes]) -> None:
        """One lease less uses these, which are given in the order of its prompt."""
        for page_hash in reversed(hashes):
            self._references[page_hash] -= 1
            if not self._references[page_hash]:
                del self._references[page_hash]
                if shard := self._shard.get(page_hash):
                    self._idle[shard][page_hash] = None

    def evict(self, shard: str, pages: int) -> list[bytes]:
        """Forget idle pages of a shard, as many or all that it has; their hashes."""
        idle = self._idle.get(shard, {})
        hashes = list(idle)[:pages]
        for page_hash in hashes:
            del idle[page_hash], self._shard[page_hash]
        self._pages[shard] -= len(hashes)
        self.evicted_pages += len(hashes)
        return hashes

    def forget(self, shard: str, hashes: Iterable[bytes]) -> None:
        """These are not there, idle or not."""
        for page_hash in hashes:
            if self._shard.get(page_hash) == shard:
                del self._shard[page_hash]
                self._idle[shard].pop(page_hash, None)
                self._pages[shard] -= 1

    def lose(self, shard: str) -> None:
        """The shard's pages are gone, idle or not."""
        self._shard = {page_hash: at for page_hash, at in self._shard.items() if at != shard}
        self._idle.pop(shard, None)
        del self._pages[shard]

    def pages(self, shard: str) -> int:
        return self._pages[shard]

    def used(self, shard: str) -> int:
        """Pages that may not be evicted."""
        return self._pages[shard] - len(self._idle.get(shard, {}))
