"""The page pool of a shard, without KV."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sps2.common.messages import Holding
from sps2.common.spans import Span

PAGES = 3
"""Of each pool: one request has room in two of them, with its answer; a second has to wait."""


Key = tuple[str, int]


class Broken(AssertionError):
    """Something holds that must never hold."""


@dataclass
class Pool:
    """A shard's process: `life` counts its starts.

    held: pages of each request there that are its own and not cached.
    used: hashes of the cached pages that each request uses, its own ones first.
    """

    id: str
    pages: int
    life: int = 0
    is_alive: bool = True
    is_member: bool = True
    is_announced: bool = True
    held: dict[Key, int] = field(default_factory=dict)
    used: dict[Key, list[bytes]] = field(default_factory=dict)
    cached: set[bytes] = field(default_factory=set)
    news: set[bytes] = field(default_factory=set)
    """Cached by requests that have ended, and not reported."""
    evicted: list[bytes] = field(default_factory=list)
    """What the directory wants to be evicted, and this shard has not heard of."""
    leaving: set[Key] = field(default_factory=set)
    """Requests whose end this shard has not heard of yet."""

    @property
    def peer(self) -> str:
        return f"{self.id}/{self.life}"

    @property
    def free(self) -> int:
        return self.pages - sum(self.held.values()) - len(self.cached)

    @property
    def holdings(self) -> list[Holding]:
        return [Holding(*key, Span(0, 0), pages) for key, pages in self.held.items()]

    def hold(self, key: Key, pages: int, shared: Sequence[bytes]) -> None:
        self.held[key], self.used[key] = pages, list(shared)

    def fill(self, key: Key, hashes: Sequence[bytes]) -> None:
        """All KV of a request is there: cache its full pages."""
        new = [each for each in hashes if each not in self.cached]
        self.held[key] -= len(new)
        self.used[key] += new
        self.cached |= {*new}

    def release(self, key: Key) -> None:
        self.leaving.discard(key)
        del self.held[key]
        self.news |= {*self.used.pop(key)} & self.cached

    def evict(self) -> None:
        """Drop pages; one that is in use is free when its last user is gone."""
        for page_hash in self.evicted:
            if page_hash in self.cached:
                self.cached.discard(page_hash)
                users = [key for key, used in self.used.items() if page_hash in used]
                if users:
                    self.held[users[-1]] += 1
        self.evicted.clear()

    def die(self) -> None:
        self.is_alive, self.evicted = False, []
        for each in (self.held, self.used, self.cached, self.news, self.leaving):
            each.clear()
