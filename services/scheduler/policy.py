"""Policies: given the head of the queue and the fleet, what to run where."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sps2.common.config import Scheduler
from sps2.common.errors import Invalid
from sps2.common.messages import CachedRun, Placement, Wish
from sps2.common.spans import Span, paged_split, pages_for
from sps2.services.scheduler.fleet import Fleet, Member
from sps2.services.scheduler.prefix import Prefix, usable
from sps2.services.scheduler.schemes import Dealt, Schemes

NOTHING = Wish()


@dataclass(frozen=True)
class Work:
    """What a policy needs to know of a request. `max_tokens` bounds the answer.

    names: of the prompt's full pages, if cached ones may be used.
    """

    request: str
    prompt_tokens: int
    max_tokens: int
    wish: Wish = NOTHING
    names: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Where a request runs: prefill shards, what each does, and KV places, the owner's last.

    prefix: what of the prompt is cached, and so is not computed.
    """

    group: tuple[str, ...]
    dealt: Dealt
    placements: tuple[Placement, ...]
    migration_pays_after: int | None
    """Tokens of answer; see `traffic.migration_pays_after`."""
    prefix: Prefix

    @property
    def takes(self) -> dict[str, int]:
        """Pages by shard that are not free any more; those of the prefix that were idle, too."""
        return {
            place.shard: place.pages + self.prefix.idle(place.shard) for place in self.placements
        }

    @property
    def owner(self) -> str:
        return self.placements[-1].shard


class Policy(Protocol):
    """Decides when and where the head of the queue runs."""

    def plan(self, work: Work, cached: Sequence[CachedRun], fleet: Fleet) -> Plan | None:
        """A plan, or None to wait.

        Args:
            cached: pages of the prompt, from the first on.

        Raises:
            Invalid: the request can never run on this cluster.
        """
        ...


class Fcfs:
    """First come, first served: SP degree by prompt length, KV where the most pages are free."""

    def __init__(self, settings: Scheduler, schemes: Schemes) -> None:
        self._settings = settings
        self._schemes = schemes

    def plan(self, work: Work, cached: Sequence[CachedRun], fleet: Fleet) -> Plan | None:
        prefix = usable(cached, work.prompt_tokens, fleet)
        if prefix.runs and (plan := self._plan(work, prefix, fleet)):
            return plan
        return self._plan(work, Prefix((), prefix.page_tokens), fleet)

    def _plan(self, work: Work, prefix: Prefix, fleet: Fleet) -> Plan | None:
        tokens = work.prompt_tokens - prefix.tokens
        group = self._group(tokens, work.wish, fleet)
        placements = self._place(work, prefix, fleet)
        if group is None or placements is None:
            return None
        dealt = self._schemes.choose(tokens, len(group), work.wish).after(prefix.tokens)
        if prefix.runs:
            moved = self._schemes.prefix_bytes(tokens, list(prefix.spans.values()))
            dealt = dealt._replace(predicted_bytes=dealt.predicted_bytes | moved)
        held = [
            sum(span.tokens for span in (*place.shared, place.span)) for place in placements[:-1]
        ]
        pays_after = self._schemes.migration_pays_after(held)
        return Plan(tuple(group[: len(dealt.spans)]), dealt, placements, pays_after, prefix)

    def _group(self, tokens: int, wish: Wish, fleet: Fleet) -> list[str] | None:
        shards = fleet.expected["prefill"]
        forced = wish.sp_degree
        if forced is not None and forced > shards:
            raise Invalid(
                f"sp_degree {forced} is more than the cluster's {shards} prefill shards",
                "sps2",
            )
        present = len(fleet.of("prefill"))
        wanted = forced or min(present, pages_for(tokens, self._settings.prefill_span_tokens))
        idle = fleet.idle_prefill()
        return [member.shard.id for member in idle[:wanted]] if 0 < wanted <= len(idle) else None

    def _place(self, work: Work, prefix: Prefix, fleet: Fleet) -> tuple[Placement, ...] | None:
        free = [
            (member, pages - prefix.idle(member.shard.id))
            for member, pages in fleet.decode_with_room()
        ]
        tokens = work.prompt_tokens - prefix.tokens
        wanted = pages_for(tokens, self._settings.decode_span_tokens)
        for holders in range(min(wanted, len(free)), len(free) + 1):
            if holders and (found := _fit(work, prefix, free, holders)):
                return found
        if not prefix.runs and fleet.complete("decode") and len(free) == len(fleet.of("decode")):
            _check_ever_fits(work, fleet)
        return None


def _fit(
    work: Work, prefix: Prefix, free: list[tuple[Member, int]], holders: int
) -> tuple[Placement, ...] | None:
    def preference(each: tuple[Member, int]) -> tuple[int, int]:
        member, pages = each
        # who has the prefix is asked in every step, unless it owns
        owned = len(member.owned) - (member.shard.id in prefix.spans) if prefix.runs else 0
        return owned, -pages

    most = sorted(free, key=preference)[:holders]
    owner = min(most, key=lambda each: (len(each[0].owned), -each[1]))
    most.remove(owner)
    most.append(owner)
    page_tokens, first = owner[0].shard.page_tokens, prefix.tokens
    weights = [max(1, pages) for _, pages in most]
    spans = paged_split(work.prompt_tokens - first, weights, page_tokens)
    placements = []
    for (member, pages), own in zip(most, spans, strict=True):
        tokens = own.tokens + (work.max_tokens if member is owner[0] else 0)
        needed = pages_for(tokens, page_tokens)
        if needed > pages:
            return None
        if needed:
            span = Span(own.start + first, own.stop + first)
            shared = prefix.spans.get(member.shard.id, ())
            placements.append(Placement(member.shard.id, span, needed, shared))
    taken = {place.shard for place in placements}
    others = [
        Placement(shard, Span(first, first), 0, shared)
        for shard, shared in prefix.spans.items()
        if shard not in taken
    ]
    return (*others, *placements)


def _check_ever_fits(work: Work, fleet: Fleet) -> None:
    """Raise if an empty cluster would have no room either."""
    empty = [(member, fleet.room.total[member.shard.id]) for member in fleet.of("decode")]
    nothing = Prefix((), 0)
    if not any(_fit(work, nothing, empty, holders) for holders in range(1, len(empty) + 1)):
        tokens = sum(pages * member.shard.page_tokens for member, pages in empty)
        raise Invalid(
            f"{work.prompt_tokens} tokens of prompt and up to {work.max_tokens} of answer do not "
            f"fit the cluster's KV pool of {tokens} tokens; ask for fewer tokens or enlarge "
            "kv.pool_tokens"
        )


POLICIES: dict[str, type[Fcfs]] = {"fcfs": Fcfs}
