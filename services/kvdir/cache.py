"""Which shard has which page of the prefix cache, how many leases use it, which goes next."""

from collections import Counter
from collections.abc import Iterable, Sequence

from sps2.common.messages import CachedRun


class PageCache:
    """Named pages of all shards. Pure, and constant in time per page.

    A page that no lease refers to is *idle*, and may be evicted: first the one that has been idle
    longest, and of pages that became so together the last of the prompt, without which those before
    it are still of use. A name is on one shard only. References count whether or not the page is
    here: a directory that lost its memory may hear of a lease before it hears of the shard.
    """

    def __init__(self) -> None:
        self._shard: dict[bytes, str] = {}
        self._references: Counter[bytes] = Counter()
        self._pages: Counter[str] = Counter()
        self._idle: dict[str, dict[bytes, None]] = {}
        self.evicted_pages = 0

    def find(self, names: Sequence[bytes]) -> tuple[CachedRun, ...]:
        """Where the pages of a prompt are, from the first on, as far as they are cached."""
        runs: list[CachedRun] = []
        for name in names:
            shard = self._shard.get(name)
            if shard is None:
                break
            idle = name in self._idle[shard]
            if runs and runs[-1].shard == shard:
                runs[-1] = CachedRun(shard, runs[-1].pages + 1, runs[-1].idle + idle)
            else:
                runs.append(CachedRun(shard, 1, int(idle)))
        return tuple(runs)

    def on(self, shard: str, names: Iterable[bytes]) -> bool:
        """Whether the shard has all of them."""
        return all(self._shard.get(name) == shard for name in names)

    def add(self, shard: str, names: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Take in pages of a prompt, in their order: which are new, which other shards have."""
        new = [name for name in names if name not in self._shard]
        elsewhere = [name for name in names if self._shard.get(name, shard) != shard]
        idle = self._idle.setdefault(shard, {})
        for name in reversed(new):
            self._shard[name] = shard
            if not self._references[name]:
                idle[name] = None
        self._pages[shard] += len(new)
        return new, elsewhere

    def refer(self, names: Iterable[bytes]) -> None:
        """One more lease uses these."""
        for name in names:
            self._references[name] += 1
            if shard := self._shard.get(name):
                self._idle[shard].pop(name, None)

    def release(self, names: Sequence[bytes]) -> None:
        """One lease less uses these, which are given in the order of its prompt."""
        for name in reversed(names):
            self._references[name] -= 1
            if not self._references[name]:
                del self._references[name]
                if shard := self._shard.get(name):
                    self._idle[shard][name] = None

    def evict(self, shard: str, pages: int) -> list[bytes]:
        """Forget idle pages of a shard, as many or all that it has; their names."""
        idle = self._idle.get(shard, {})
        names = list(idle)[:pages]
        for name in names:
            del idle[name], self._shard[name]
        self._pages[shard] -= len(names)
        self.evicted_pages += len(names)
        return names

    def forget(self, shard: str, names: Iterable[bytes]) -> None:
        """These are not there, idle or not."""
        for name in names:
            if self._shard.get(name) == shard:
                del self._shard[name]
                self._idle[shard].pop(name, None)
                self._pages[shard] -= 1

    def lose(self, shard: str) -> None:
        """The shard's pages are gone, idle or not."""
        self._shard = {name: at for name, at in self._shard.items() if at != shard}
        self._idle.pop(shard, None)
        del self._pages[shard]

    def pages(self, shard: str) -> int:
        return self._pages[shard]

    def used(self, shard: str) -> int:
        """Pages that may not be evicted."""
        return self._pages[shard] - len(self._idle.get(shard, {}))
