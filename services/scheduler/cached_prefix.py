"""The cached prefix of a prompt, and where it lies."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from sps2.common.messages import CachedRun, Placement
from sps2.common.spans import Span
from sps2.services.scheduler.fleet import Fleet


@dataclass(frozen=True)
class Prefix:
    """Runs of cached pages, from the prompt's first page on; empty if nothing is cached."""

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
        found: dict[str, tuple[Span, ...]] = {}
        edges = accumulate((run.pages * self.page_tokens for run in self.runs), initial=0)
        for run, (start, stop) in zip(self.runs, pairwise(edges), strict=True):
            found[run.shard] = (*found.get(run.shard, ()), Span(start, stop))
        return found

    def idle(self, shard: str) -> int:
        """How many of its pages on `shard` are idle, and count as free until they are used."""
        return sum(run.idle for run in self.runs if run.shard == shard)

    def besides(self, shards: Sequence[str]) -> list[Placement]:
        """Placements on shards with cached pages of it that are not among `shards`."""
        nothing = Span(self.tokens, self.tokens)
        return [
            Placement(shard, nothing, 0, spans)
            for shard, spans in self.spans.items()
            if shard not in shards
        ]


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
        runs.append(CachedRun(run.shard, pages, min(run.idle, pages)))
        left -= pages
    return Prefix(tuple(runs), page_tokens)


def shared_hashes(
    placements: Sequence[Placement], hashes: Sequence[bytes], page_tokens: int
) -> dict[str, tuple[bytes, ...]]:
    """The hashes of the cached pages that a request shares, by shard."""
    return {
        place.shard: tuple(
            page_hash
            for span in place.shared
            for page_hash in hashes[span.start // page_tokens : span.stop // page_tokens]
        )
        for place in placements
        if place.shared
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
