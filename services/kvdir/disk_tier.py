"""The second tier of the prefix cache: which shards have which pages on disk."""

from collections import Counter
from collections.abc import Iterable

from sps2.common.messages import OnDisk


class DiskTier:
    """Pages on the disks of shards, by hash. A page may be on several disks, and in memory too."""

    def __init__(self) -> None:
        self._shards: dict[bytes, tuple[str, ...]] = {}
        self._pages: Counter[str] = Counter()
        self._read_page_s: dict[str, float] = {}

    def report(self, shard: str, on_disk: OnDisk) -> None:
        """Record what a shard has written and erased since its last report."""
        if on_disk.read_page_s > 0:
            self._read_page_s[shard] = on_disk.read_page_s
        self._remove(shard, on_disk.erased)
        for page_hash in on_disk.hashes:
            shards = self._shards.get(page_hash, ())
            if shard not in shards:
                self._shards[page_hash] = (*shards, shard)
                self._pages[shard] += 1

    def lose(self, shard: str) -> None:
        """The shard is gone."""
        self.forget(shard)
        self._read_page_s.pop(shard, None)

    def forget(self, shard: str) -> None:
        """The shard deletes all of its pages."""
        if self._pages[shard]:
            self._remove(shard, list(self._shards))

    def shard_of(self, page_hash: bytes, preferred: str) -> str | None:
        """A shard that can read a page, the preferred one if it has it; None if no one has."""
        shards = [each for each in self._shards.get(page_hash, ()) if each in self._read_page_s]
        return preferred if preferred in shards else next(iter(shards), None)

    def read_page_s(self, shard: str) -> float:
        """Predicted seconds to read a page."""
        return self._read_page_s[shard]

    def on(self, shard: str, hashes: Iterable[bytes]) -> bool:
        """Whether the shard has all of these pages on its disk."""
        return all(shard in self._shards.get(page_hash, ()) for page_hash in hashes)

    def pages(self) -> int:
        """Pages on disks, those of several disks counted once for each."""
        return self._pages.total()

    def _remove(self, shard: str, hashes: Iterable[bytes]) -> None:
        for page_hash in hashes:
            shards = self._shards.get(page_hash, ())
            if shard in shards:
                left = tuple(each for each in shards if each != shard)
                if left:
                    self._shards[page_hash] = left
                else:
                    del self._shards[page_hash]
                self._pages[shard] -= 1
