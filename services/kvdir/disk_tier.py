"""The second tier of the prefix cache: which shards have which pages on disk."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from sps2.common.errors import Invalid
from sps2.common.messages import OnDisk
from sps2.common.words import counted


class DiskTier:
    """Pages on the disks of shards, by hash. A page may be on several disks, and in memory too."""

    def __init__(self) -> None:
        self._shards: dict[bytes, tuple[str, ...]] = {}
        self._pages: Counter[str] = Counter()
        self._read_page_s: dict[str, float] = {}
        self._pinned: dict[str, set[bytes]] = {}
        """Pages that a shard keeps, whether they are there already or not."""
        self._most_pinned: dict[str, int] = {}

    def report(self, shard: str, on_disk: OnDisk) -> None:
        """Record what a shard has written and erased since its last report."""
        if on_disk.read_page_s > 0:
            self._read_page_s[shard] = on_disk.read_page_s
        if on_disk.most_pinned is not None:
            self._pinned[shard] = set(on_disk.pinned)
            self._most_pinned[shard] = on_disk.most_pinned
        self._remove(shard, on_disk.erased)
        for page_hash in on_disk.hashes:
            shards = self._shards.get(page_hash, ())
            if shard not in shards:
                self._shards[page_hash] = (*shards, shard)
                self._pages[shard] += 1

    def lose(self, shard: str) -> None:
        """The shard is gone."""
        self._pinned.pop(shard, None)
        self._most_pinned.pop(shard, None)
        self.forget(shard)
        self._read_page_s.pop(shard, None)

    def forget(self, shard: str) -> None:
        """The shard deletes all of its pages that are not pinned."""
        if self._pages[shard]:
            pinned = self._pinned.get(shard, set())
            self._remove(shard, [each for each in self._shards if each not in pinned])

    def keeps(self, shard: str) -> bool:
        """Whether the shard keeps pages on disk."""
        return shard in self._most_pinned

    def pin(self, pages: Mapping[str, Sequence[bytes]]) -> None:
        """Pin pages, by shard.

        Raises:
            Invalid: a shard would have too many; then none is pinned.
        """
        for shard, hashes in pages.items():
            pinned, most = self._pinned[shard], self._most_pinned[shard]
            if (wanted := len(pinned.union(hashes))) > most:
                raise Invalid(
                    f"{shard} would have {counted(wanted, 'pinned page')}; it may have {most}, "
                    f"half of its room on disk, and has {len(pinned)}: unpin others, or raise "
                    "kv.disk_gib (--kv-disk-gib)"
                )
        for shard, hashes in pages.items():
            self._pinned[shard].update(hashes)

    def unpin(self, hashes: Iterable[bytes] | None = None) -> dict[str, list[bytes]]:
        """Unpin pages, or all of them; returns those that were pinned, by shard."""
        found: dict[str, list[bytes]] = {}
        for shard, pinned in self._pinned.items():
            gone = [*pinned] if hashes is None else [each for each in hashes if each in pinned]
            pinned.difference_update(gone)
            if gone:
                found[shard] = gone
        return found

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
