"""Policies: given the head of the queue and the fleet, what to run where."""

from dataclasses import dataclass
from typing import Protocol

from sps2.common.config import Scheduler
from sps2.common.errors import Invalid
from sps2.common.messages import Placement, Wish
from sps2.common.spans import fits, paged_split, pages_for
from sps2.services.scheduler.fleet import Fleet, Member
from sps2.services.scheduler.schemes import Dealt, Schemes, Seats

NOTHING = Wish()


@dataclass(frozen=True)
class Work:
    """What a policy needs to know of a request. `max_tokens` bounds the answer."""

    request: str
    prompt_tokens: int
    max_tokens: int
    wish: Wish = NOTHING


@dataclass(frozen=True)
class Plan:
    """Where a request runs: prefill shards, what each does, and KV places, the owner's last."""

    group: tuple[str, ...]
    dealt: Dealt
    placements: tuple[Placement, ...]
    migration_pays_after: int | None
    """Tokens of answer; see `traffic.migration_pays_after`."""

    @property
    def owner(self) -> str:
        return self.placements[-1].shard


class Policy(Protocol):
    """Decides when and where the head of the queue runs."""

    def plan(self, work: Work, fleet: Fleet) -> Plan | None:
        """A plan, or None to wait.

        Raises:
            Invalid: the request can never run on this cluster.
        """
        ...


class Fcfs:
    """First come, first served: SP degree by prompt length, KV where the most pages are free.

    Where shards do both, those with the most free pages prefill, and keep what they compute.
    """

    def __init__(self, settings: Scheduler, schemes: Schemes) -> None:
        self._settings = settings
        self._schemes = schemes

    def plan(self, work: Work, fleet: Fleet) -> Plan | None:
        return self._in_place(work, fleet) if fleet.in_place else self._apart(work, fleet)

    def _apart(self, work: Work, fleet: Fleet) -> Plan | None:
        group = self._group(work, fleet)
        placements = self._place(work, fleet)
        if group is None or placements is None:
            return None
        dealt = self._schemes.choose(work.prompt_tokens, len(group), work.wish)
        held = [place.span.tokens for place in placements[:-1]]
        pays_after = self._schemes.migration_pays_after(held)
        return Plan(tuple(group[: len(dealt.spans)]), dealt, placements, pays_after)

    def _group(self, work: Work, fleet: Fleet) -> list[str] | None:
        wanted, idle = self._degree(work, fleet), fleet.idle()
        return [member.shard.id for member in idle[:wanted]] if 0 < wanted <= len(idle) else None

    def _degree(self, work: Work, fleet: Fleet) -> int:
        """How many shards are to prefill; 0 where there is none."""
        shards = fleet.expected[fleet.prefilling]
        forced = work.wish.sp_degree
        if forced is not None and forced > shards:
            raise Invalid(
                f"sp_degree {forced} is more than the cluster's {shards} {fleet.prefilling} shards",
                "sps2",
            )
        present = len(fleet.of(fleet.prefilling))
        wanted = pages_for(work.prompt_tokens, self._settings.prefill_span_tokens)
        return forced or min(present, wanted)

    def _place(self, work: Work, fleet: Fleet) -> tuple[Placement, ...] | None:
        free = fleet.with_room()
        wanted = pages_for(work.prompt_tokens, self._settings.decode_span_tokens)
        for holders in range(min(wanted, len(free)), len(free) + 1):
            if holders and (found := _fit(work, free, holders)):
                return found
        if fleet.complete("decode") and len(free) == len(fleet.of("decode")):
            _check_ever_fits(work, fleet)
        return None

    def _in_place(self, work: Work, fleet: Fleet) -> Plan | None:
        known = fleet.with_room()
        usable = [each for each in known if each[1] > 0]
        wanted = self._degree(work, fleet)
        if work.wish.sp_degree is None:  # a shard can be full for long
            wanted = max(1, min(wanted, len(usable)))
        free = [each for each in usable if not each[0].prefilled]
        ranks = self._ranks(work, free, wanted)
        if not ranks:
            empty = [(member, fleet.room.total[member.shard.id]) for member, _ in known]
            if len(known) >= fleet.expected["any"] and not self._ranks(work, empty, wanted):
                raise _never_fits(work, empty[: work.wish.sp_degree])
            return None
        shards = [member.shard for member, _ in ranks]
        seats = Seats(tuple(tokens for _, tokens in ranks), shards[0].page_tokens)
        degree = max(wanted, len(shards))
        dealt = self._schemes.choose(work.prompt_tokens, degree, work.wish, seats)
        placements = [
            Placement(shard.id, span, pages_for(span.tokens, shard.page_tokens))
            for shard, (span,) in zip(shards, dealt.spans, strict=True)
        ]
        owner, last = shards[-1], placements[-1].span
        pages = pages_for(last.tokens + work.max_tokens, owner.page_tokens)
        placements[-1] = Placement(owner.id, last, pages)
        pays_after = self._schemes.migration_pays_after(
            [place.span.tokens for place in placements[:-1]]
        )
        group = tuple(shard.id for shard in shards)
        return Plan(group, dealt, tuple(placements), pays_after)

    def _ranks(
        self, work: Work, free: list[tuple[Member, int]], wanted: int
    ) -> list[tuple[Member, int]]:
        """At least so many members, the owner last, with the tokens of prompt that each can keep.

        Empty where they have too little room together.
        """
        page_tokens = free[0][0].shard.page_tokens if free else 1
        last = (work.prompt_tokens - 1) % page_tokens + 1  # at least what is on the last page
        for asked in range(wanted, (work.wish.sp_degree or len(free)) + 1):
            degree = self._schemes.degree(work.prompt_tokens, asked, page_tokens)
            if degree > len(free):
                break
            most = sorted(free, key=lambda each: -each[1])[:degree]
            kept = [(member, pages * page_tokens) for member, pages in most]
            able = [each for each in kept if each[1] >= work.max_tokens + last]
            if not able:
                break
            owner = min(able, key=lambda each: (len(each[0].owned), -each[1]))
            kept.remove(owner)
            kept.append((owner[0], owner[1] - work.max_tokens))
            if fits(work.prompt_tokens, [tokens for _, tokens in kept], page_tokens):
                return kept
        return []


def _fit(work: Work, free: list[tuple[Member, int]], holders: int) -> tuple[Placement, ...] | None:
    most = sorted(free, key=lambda each: -each[1])[:holders]
    owner = min(most, key=lambda each: (len(each[0].owned), -each[1]))
    most.remove(owner)
    most.append(owner)
    page_tokens = owner[0].shard.page_tokens
    spans = paged_split(work.prompt_tokens, [max(1, pages) for _, pages in most], page_tokens)
    placements = []
    for (member, pages), span in zip(most, spans, strict=True):
        tokens = span.tokens + (work.max_tokens if member is owner[0] else 0)
        needed = pages_for(tokens, page_tokens)
        if needed > pages:
            return None
        if needed:
            placements.append(Placement(member.shard.id, span, needed))
    return tuple(placements)


def _check_ever_fits(work: Work, fleet: Fleet) -> None:
    """Raise if an empty cluster would have no room either."""
    empty = [(member, fleet.room.total[member.shard.id]) for member in fleet.of("decode")]
    if not any(_fit(work, empty, holders) for holders in range(1, len(empty) + 1)):
        raise _never_fits(work, empty)


def _never_fits(work: Work, empty: list[tuple[Member, int]]) -> Invalid:
    tokens = sum(pages * member.shard.page_tokens for member, pages in empty)
    return Invalid(
        f"{work.prompt_tokens} tokens of prompt and up to {work.max_tokens} of answer do not "
        f"fit the KV pools of the shards that may keep them, {tokens} tokens; ask for fewer tokens "
        "or enlarge kv.pool_tokens"
    )


POLICIES: dict[str, type[Fcfs]] = {"fcfs": Fcfs}
