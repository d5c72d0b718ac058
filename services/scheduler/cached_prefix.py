"""The cached prefix of a prompt, and where it lies."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise, takewhile

from msgspec.structs import replace

from sps2.common.messages import CachedRun, Placement
from sps2.common.spans import Span, page_numbers
from sps2.services.scheduler.fleet import Fleet


@dataclass(frozen=True)
class Prefix:
    """Runs of cached pages, from the prompt's first page on; empty if nothing is cached.

    Pages on disk are read into free pages of their shard before the prefill.
    """

    runs: tuple[CachedRun, ...]
    page_tokens: int

    @property
    def pages(self) -> int:
        return sum(run.pages for run in self.runs)

    @property
    def tokens(self) -> int:
        return self.pages * self.page_tokens

    @cached_property
    def spans(self) -> dict[str, tuple[Span, ...]]:
        """The token spans that each shard has cached, by shard."""
        return self._spans(lambda run: True)

    @cached_property
    def from_disk(self) -> dict[str, tuple[Span, ...]]:
        """Those of `spans` that are on disk, by shard."""
        return self._spans(lambda run: run.on_disk)

    @property
    def in_memory(self) -> "Prefix":
        """The part before the first page on disk."""
        return Prefix(tuple(takewhile(lambda run: not run.on_disk, self.runs)), self.page_tokens)

    @property
    def read_s(self) -> float:
        """Predicted seconds to read what is on disk; shards do so at the same time."""
        seconds: dict[str, float] = {}
        for run in self.runs:
            seconds[run.shard] = seconds.get(run.shard, 0.0) + run.pages * run.read_page_s
        return max(seconds.values(), default=0.0)

    def takes(self, shard: str) -> int:
        """How many free pages it uses up on `shard`: idle ones, and those to read from disk."""
        return sum(run.taken for run in self.runs if run.shard == shard)

    def besides(self, shards: Sequence[str]) -> list[Placement]:
        """Placements on shards with cached pages of it that are not among `shards`."""
        nothing = Span(self.tokens, self.tokens)
        return [self.placed(shard, nothing, 0) for shard in self.spans if shard not in shards]

    def placed(self, shard: str, span: Span, pages: int) -> Placement:
        """A placement of tokens behind it on a shard, which may have some of it."""
        shared, from_disk = self.spans.get(shard, ()), self.from_disk.get(shard, ())
        return Placement(shard, span, pages, shared, from_disk)

    def _spans(self, wanted: Callable[[CachedRun], bool]) -> dict[str, tuple[Span, ...]]:
        found: dict[str, tuple[Span, ...]] = {}
        edges = accumulate((run.pages * self.page_tokens for run in self.runs), initial=0)
        for run, (start, stop) in zip(self.runs, pairwise(edges), strict=True):
            if wanted(run):
                found[run.shard] = (*found.get(run.shard, ()), Span(start, stop))
        return found


def usable(cached: Sequence[CachedRun], prompt_tokens: int, fleet: Fleet) -> Prefix:
    """The part of the cached pages on present shards that leaves at least a token to compute."""
    page_tokens = fleet.page_tokens
    if not cached:
        return Prefix((), page_tokens)
    left = (prompt_tokens - 1) // page_tokens
    runs: list[CachedRun] = []
    for run in cached:
        pages = min(run.pages, left)
        if not pages or run.shard not in fleet.room.free or not fleet.keeps(run.shard):
            break
        runs.append(replace(run, pages=pages, idle=min(run.idle, pages)))
        left -= pages
    return Prefix(tuple(runs), page_tokens)


def shared_hashes(
    placements: Sequence[Placement], hashes: Sequence[bytes], page_tokens: int
) -> dict[str, tuple[bytes, ...]]:
    """The hashes of the cached pages in memory that a request shares, by shard."""
    return {
        place.shard: tuple(hashes[n] for n in numbers)
        for place in placements
        if (numbers := list(_in_memory(place, page_tokens)))
    }


def hashes_from_disk(
    placements: Sequence[Placement], hashes: Sequence[bytes], page_tokens: int
) -> dict[str, tuple[bytes, ...]]:
    """The hashes of the pages that are read from disk for a request, by shard."""
    return {
        place.shard: tuple(hashes[n] for n in page_numbers(place.from_disk, page_tokens))
        for place in placements
        if place.from_disk
    }


def own_hashes(
    placements: Sequence[Placement], hashes: Sequence[bytes], page_tokens: int
) -> dict[str, tuple[bytes, ...]]:
    """The hashes of the full pages that a prompt fills, by shard; the owner's come last."""
    return {
        place.shard: tuple(
            hashes[place.span.start // page_tokens : -(-place.span.stop // page_tokens)]
        )
        for place in placements
        if place.span.tokens
    }


def _in_memory(place: Placement, page_tokens: int) -> Iterator[int]:
    """The numbers of the pages that a placement shares and that need not be read."""
    read = {*page_numbers(place.from_disk, page_tokens)}
    return (n for n in page_numbers(place.shared, page_tokens) if n not in read)
