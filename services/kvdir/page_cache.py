"""The prefix cache: which shard has which page, how many leases use it, which is evicted next."""

from collections import Counter
from collections.abc import Iterable, Sequence

from sps2.common.errors import Invalid
from sps2.common.messages import CachedRun
from sps2.common.words import counted
from sps2.services.kvdir.disk_tier import DiskTier


class PageCache:
    """Cached pages of all shards, by hash. No I/O; every operation takes constant time per page.

    A page that no lease refers to is *idle* and may be evicted. The page that has been idle longest
    goes first. Of pages that became idle together, the last of the prompt goes first: those before
    it stay useful without it. A hash is on one shard only. References count even if the page is not
    here: a directory that lost its memory may hear of a lease before it hears of the shard. All of
    this is about memory; `disk` has the pages on disk, whether they are in memory too or not.
    """

    def __init__(self) -> None:
        self._shard: dict[bytes, str] = {}
        self._references: Counter[bytes] = Counter()
        self._pages: Counter[str] = Counter()
        self._idle: dict[str, dict[bytes, None]] = {}
        self.disk = DiskTier()
        self.evicted_pages = 0

    def find(self, hashes: Sequence[bytes]) -> tuple[CachedRun, ...]:
        """The cached pages of a prompt, from the first up to the first that is not cached.

        A page that is in memory and on disk counts as in memory.
        """
        runs: list[CachedRun] = []
        for page_hash in hashes:
            last = runs[-1] if runs else CachedRun("", 0, 0)
            shard, idle, read_page_s = self._shard.get(page_hash), False, 0.0
            if shard is not None:
                idle = page_hash in self._idle[shard]
            elif shard := self.disk.shard_of(page_hash, last.shard):
                read_page_s = self.disk.read_page_s(shard)
            else:
                break
            if (last.shard, last.read_page_s) == (shard, read_page_s):
                runs[-1] = CachedRun(shard, last.pages + 1, last.idle + idle, read_page_s)
            else:
                runs.append(CachedRun(shard, 1, int(idle), read_page_s))
        return tuple(runs)

    def pin(self, hashes: Sequence[bytes]) -> dict[str, list[bytes]]:
        """Pin the cached pages of a prompt, from the first up to the first that is not cached.

        Those that are in memory alone are on their way to the disk of their shard.

        Returns:
            The pages by shard.

        Raises:
            Invalid: no page is kept on disk, none is cached, or a shard would pin too many.
        """
        found: dict[str, list[bytes]] = {}
        shard: str | None = ""
        for page_hash in hashes:
            shard = self.disk.shard_of(page_hash, shard or "") or self._shard.get(page_hash)
            if shard is None or not self.disk.keeps(shard):
                break
            found.setdefault(shard, []).append(page_hash)
        if not found and shard:
            raise Invalid(f"{shard} keeps no pages on disk: see kv.disk_folder (--kv-disk)")
        if not found:
            pages = counted(len(hashes), "full page")
            raise Invalid(
                f"none of the {pages} of this prompt is cached: send it once as a request, and "
                "then pin it"
            )
        self.disk.pin(found)
        return found

    def on(self, shard: str, hashes: Iterable[bytes]) -> bool:
        """Whether the shard has all of these pages."""
        return all(self._shard.get(page_hash) == shard for page_hash in hashes)

    def add(self, shard: str, hashes: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Add pages of a prompt, in its order; returns the new ones, and those on other shards."""
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
        """One more lease uses these pages."""
        for page_hash in hashes:
            self._references[page_hash] += 1
            if shard := self._shard.get(page_hash):
                self._idle[shard].pop(page_hash, None)

    def release(self, hashes: Sequence[bytes]) -> None:
        """One lease less uses these pages, which are in the order of its prompt."""
        for page_hash in reversed(hashes):
            self._references[page_hash] -= 1
            if not self._references[page_hash]:
                del self._references[page_hash]
                if shard := self._shard.get(page_hash):
                    self._idle[shard][page_hash] = None

    def evict(self, shard: str, pages: int) -> list[bytes]:
        """Evict up to `pages` idle pages of a shard; returns their hashes."""
        idle = self._idle.get(shard, {})
        hashes = list(idle)[:pages]
        for page_hash in hashes:
            del idle[page_hash], self._shard[page_hash]
        self._pages[shard] -= len(hashes)
        self.evicted_pages += len(hashes)
        return hashes

    def forget(self, shard: str, hashes: Iterable[bytes]) -> None:
        """Remove pages that the shard turned out not to have, idle or not."""
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
        self.disk.lose(shard)

    def pages(self, shard: str) -> int:
        return self._pages[shard]

    def used(self, shard: str) -> int:
        """Pages that may not be evicted."""
        return self._pages[shard] - len(self._idle.get(shard, {}))
