"""Placement: which shards prefill a prompt, and which keep its KV."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from sps2.common.config import Scheduler
from sps2.common.errors import Invalid
from sps2.common.messages import CachedRun, Placement
from sps2.common.spans import Span, fits, pages_for
from sps2.common.words import counted
from sps2.services.scheduler.cached_prefix import Prefix, usable
from sps2.services.scheduler.degrees import Choice, Degrees
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.fleet_state import Member
from sps2.services.scheduler.keeping import (
    beside_answer,
    burden,
    fit,
    has_room,
    pools_of,
    preference,
    quick_first,
    room_of,
)
from sps2.services.scheduler.partition import Capacity, Partition
from sps2.services.scheduler.plan import Plan, Wait, Work
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.traffic import PrefixQuery
from sps2.services.scheduler.unequal import least_rate, paces_of, pass_cost, slow_first, well_linked
from sps2.services.scheduler.unplaceable import absent_of, grown, too_large
from sps2.services.scheduler.unreachable import connected

Ahead = Callable[[Member], float | None]
"""How much a shard computes before a prompt that it gets now; None if it may not take it now."""


def idle(member: Member) -> float | None:
    """Only shards without a prefill may take a prompt."""
    return None if member.prefilled else 0.0


class Placing:
    """Makes plans: SP degree by prompt length and prediction, KV where the most pages are free.

    Among mixed shards, those with the most free pages prefill. One of them keeps all KV of a short
    prompt; of a long prompt each keeps the KV that it computed. Where shards are not equally fast,
    the faster ones prefill, and get the more to do.

    Args:
        shrinks: the fewest of the mixed shards that prefill a prompt keep its KV, if they have room
            for it; that of the others moves to them during the prefill.
    """

    def __init__(self, settings: Scheduler, schemes: Schemes, shrinks: bool = False) -> None:
        self._settings = settings
        self._schemes = schemes
        self._degrees = Degrees(schemes)
        self._shrinks = shrinks

    def adapt(self, fleet: Fleet) -> None:
        """Predict with what was measured of a fleet."""
        self._schemes.adapt(fleet.known())

    def plan(
        self, work: Work, cached: Sequence[CachedRun], fleet: Fleet, ahead: Ahead = idle
    ) -> Plan | Wait:
        """A plan in which all shards can reach each other, or why there is none yet.

        Cached pages are used unless reading them from disk and moving queries to them takes longer
        than computing them again. What is predicted is compared: with all of them, with those
        before the first on disk, and with none.

        Args:
            cached: the cached pages of the prompt, from the first on.
            ahead: which shards may prefill now; those with the least ahead of the prompt do.

        Raises:
            Invalid: the request can never run on this cluster.
        """
        return connected(lambda reachable: self._plan(work, cached, reachable, ahead), fleet)

    def has_room_beside(self, work: Work, plans: Iterable[Plan], fleet: Fleet) -> bool:
        """Whether the KV of a request has room if the fleet keeps nothing but that of `plans`."""
        taken = Counter[str]()
        for plan in plans:
            taken.update(plan.takes)
        left = [(member, pages - taken[member.shard.id]) for member, pages in pools_of(fleet)]
        nothing = Prefix((), fleet.page_tokens)
        if fleet.in_place and not self._shrinks:
            roomy, least = [each for each in left if each[1] > 0], work.options.sp_degree or 1
            return bool(self._ranks(work, nothing, roomy, least, fleet.relative_speeds()))
        return has_room(work, nothing, left)

    def _plan(
        self, work: Work, cached: Sequence[CachedRun], fleet: Fleet, ahead: Ahead
    ) -> Plan | Wait:
        plan_by = self._in_place if fleet.in_place and not self._shrinks else self._separate
        prefix = usable(cached, work.prompt_tokens, fleet)
        best = plan_by(work, Prefix((), prefix.page_tokens), fleet, ahead)
        parts = [prefix, prefix.in_memory] if prefix.from_disk else [prefix]
        for part in reversed(parts):
            if part.runs and all(pages >= 0 for _, pages in room_of(part, fleet)):
                found = plan_by(work, part, fleet, ahead)
                if isinstance(found, Plan) and (
                    not isinstance(best, Plan) or found.predicted_s <= best.predicted_s
                ):
                    best = found
        return best

    def _separate(self, work: Work, prefix: Prefix, fleet: Fleet, ahead: Ahead) -> Plan | Wait:
        tokens = work.prompt_tokens - prefix.tokens
        choice = self.choice(work, tokens, fleet)
        if absent := absent_of(choice.degree, work, fleet):
            return absent
        pools = pools_of(fleet)
        if not has_room(grown(work), Prefix((), prefix.page_tokens), pools):
            return too_large(work, pools, fleet)
        group = self._group(tokens, choice, fleet, ahead)
        if group is None:
            return Wait("shards")
        placements = self._place(work, prefix, fleet, group)
        if placements is None:
            return Wait("room")
        paces = fleet.speeds_of(group), fleet.wires_of(group)
        partition = self._schemes.choose(tokens, len(group), work.options, None, *paces)
        return self._planned(
            work, group[: len(partition.spans)], partition, placements, prefix, fleet
        )

    def _planned(
        self,
        work: Work,
        group: Sequence[str],
        partition: Partition,
        placements: Sequence[Placement],
        prefix: Prefix,
        fleet: Fleet,
    ) -> Plan:
        """A plan from a partition of the tokens after a prefix among the ranks of a group."""
        partition = partition.after(prefix.tokens)
        if prefix.runs:
            queries = [
                PrefixQuery(own, theirs)
                for rank, own in zip(group, partition.spans, strict=True)
                for shard, theirs in prefix.spans.items()
                if shard != rank
            ]
            rate = least_rate(fleet, [*group, *prefix.spans])
            partition = self._schemes.behind(
                partition, prefix.tokens, queries, len(prefix.spans), rate
            )
        alone = len(group) == 1 and work.options.sp_degree is None
        threads = _threads(fleet.members[group[0]], fleet) if alone else 0
        held = [
            sum(span.tokens for span in (*place.shared, place.span)) for place in placements[:-1]
        ]
        pays_after = self._schemes.migration_pays_after(held)
        return Plan(tuple(group), partition, tuple(placements), pays_after, prefix, threads)

    def _group(self, tokens: int, choice: Choice, fleet: Fleet, ahead: Ahead) -> list[str] | None:
        wanted, speeds = choice.degree, fleet.relative_speeds()
        members = well_linked(choice, fleet, fleet.prefillers(), lambda each: each)
        able = self._able(tokens, members, ahead, speeds)
        if wanted == 1 and (not able or ahead(able[0])):
            able = self._joinable(tokens, members, speeds) or able
        elif wanted == 1:
            able = self._quicker(tokens, able, members, speeds) or able
        if wanted > len(able):
            return None
        group = [member.shard.id for member in able[:wanted]]
        return sorted(group, key=lambda shard: speeds.get(shard, 1.0)) if speeds else group

    def _able(
        self, tokens: int, members: Sequence[Member], ahead: Ahead, speeds: Mapping[str, float]
    ) -> list[Member]:
        """Members that may take a prompt now: those with the least ahead of it, then those that
        were given the fewest so far, so that a long prompt's shards are held back alike.

        If they are not equally fast, those that would compute it the soonest come first.
        """
        found = [(before, member) for member in members if (before := ahead(member)) is not None]
        if speeds:
            alone_s = self._schemes.alone_s(tokens)
            found = [(before + alone_s / speeds[each.shard.id], each) for before, each in found]
        found.sort(key=lambda each: (each[0], each[1].given))
        return [member for _, member in found]

    def _joinable(
        self, tokens: int, members: Sequence[Member], speeds: Mapping[str, float]
    ) -> list[Member]:
        """Members busy with short prompts that `tokens` tokens can join, the least busy first."""
        most = self._settings.pass_tokens
        able = [member for member in members if member.could_take(tokens, most)]
        return sorted(able, key=lambda each: pass_cost(0, each, speeds))

    def _quicker(
        self,
        tokens: int,
        free: Sequence[Member],
        members: Sequence[Member],
        speeds: Mapping[str, float],
    ) -> list[Member]:
        """Members whose passes a prompt can join that are faster, by more than what they compute
        already, than the fastest that is free."""
        if not speeds:
            return []
        least = min((pass_cost(tokens, each, speeds) for each in free), default=0.0)
        joinable = self._joinable(tokens, members, speeds)
        return [each for each in joinable if pass_cost(tokens, each, speeds) < least]

    def choice(self, work: Work, tokens: int, fleet: Fleet) -> Choice:
        """How many shards are to prefill `tokens` tokens, and behind which links.

        They may be more than are present.

        Raises:
            Invalid: the request wants more than there can be.
        """
        shards = fleet.most_prefillers()
        forced = work.options.sp_degree
        if forced is not None and forced > shards and work.resumes:
            forced = None  # those that began the answer have left: it goes on without them
        if forced is not None and forced > shards:
            raise Invalid(
                f"sp_degree {forced} is more than the cluster's "
                f"{counted(shards, f'{fleet.prefilling} shard')}",
                "sps2.sp_degree",
                "invalid_value",
            )
        quick = paces_of(fleet, tokens)
        every = tuple(pace for _, pace in quick)
        if forced is not None:
            return self._degrees.behind(tokens, forced, work.options, every)
        present = fleet.prefillers()
        most = min(len(present), pages_for(tokens, self._settings.prefill_span_tokens))
        idle = sum(not member.prefilled for member in present)
        free = tuple(pace for member, pace in quick if not member.prefilled)
        gathers = fleet.in_place and tokens <= self._settings.decode_span_tokens
        return self._degrees.best(
            tokens, most, idle, work.options, gathers, every, free, not fleet.in_place
        )

    def _place(
        self, work: Work, prefix: Prefix, fleet: Fleet, group: Sequence[str]
    ) -> tuple[Placement, ...] | None:
        free = room_of(prefix, fleet)
        if not has_room(work, prefix, free):
            return None
        tokens = work.prompt_tokens - prefix.tokens
        wanted = pages_for(tokens, self._settings.decode_span_tokens)
        if self._shrinks:
            among = [each for each in free if each[0].shard.id in group]
            free = among if has_room(work, prefix, among) else free
        for holders in range(max(1, min(wanted, len(free))), len(free) + 1):
            if found := fit(work, prefix, free, holders, fleet.relative_wires()):
                return found
        return None

    def _in_place(self, work: Work, prefix: Prefix, fleet: Fleet, ahead: Ahead) -> Plan | Wait:
        tokens = work.prompt_tokens - prefix.tokens
        choice = self.choice(work, tokens, fleet)
        wanted, speeds = choice.degree, fleet.relative_speeds()
        if absent := absent_of(wanted, work, fleet):
            return absent
        roomy = [each for each in room_of(prefix, fleet) if each[1] > 0]
        roomy = well_linked(choice, fleet, roomy, lambda each: each[0])
        if work.options.sp_degree is None:  # a shard can be full for a long time
            wanted = max(1, min(wanted, len(roomy)))
        free = [each for each in roomy if ahead(each[0]) is not None]
        ranks: list[tuple[Member, int]] = []
        if wanted == 1:
            rooms, here = dict(_named(roomy)), [member for member, _ in roomy]
            joined = (
                self._quicker(tokens, [member for member, _ in free], here, speeds)
                if free
                else self._joinable(tokens, here, speeds)
            )
            for member in joined:
                one = [(member, rooms[member.shard.id])]
                ranks = ranks or self._ranks(work, prefix, one, 1, speeds)
        alone = [] if ranks else self._for_one_keeper(work, prefix, free, wanted, speeds)
        ranks = ranks or alone or self._ranks(work, prefix, free, wanted, speeds)
        if not ranks:
            pools = pools_of(fleet)
            if not self._ranks(grown(work), Prefix((), prefix.page_tokens), pools, wanted, speeds):
                return too_large(work, pools[: work.options.sp_degree], fleet)
            return Wait("shards" if self._ranks(work, prefix, roomy, wanted, speeds) else "room")
        group = [member.shard.id for member, _ in ranks]
        capacity = Capacity(tuple(room for _, room in ranks), prefix.page_tokens)
        partition = self._schemes.choose(
            tokens,
            max(wanted, len(group)),
            work.options,
            capacity,
            fleet.speeds_of(group),
            fleet.wires_of(group),
        )
        kept = {shard: own for shard, (own,) in zip(group, partition.spans, strict=True)}
        if alone:
            kept = {group[-1]: Span(0, tokens)}
        placements = []
        for shard, own in kept.items():
            kept_tokens = own.tokens + (work.first_tokens if shard == group[-1] else 0)
            span = Span(own.start + prefix.tokens, own.stop + prefix.tokens)
            pages = pages_for(kept_tokens, prefix.page_tokens)
            placements.append(prefix.placed(shard, span, pages))
        return self._planned(
            work, group, partition, [*prefix.besides(list(kept)), *placements], prefix, fleet
        )

    def _for_one_keeper(
        self,
        work: Work,
        prefix: Prefix,
        free: list[tuple[Member, int]],
        wanted: int,
        speeds: Mapping[str, float],
    ) -> list[tuple[Member, int]]:
        """`wanted` members that compute a prompt, all of whose KV the last of them keeps.

        See `_ranks`; empty if the prompt is too long for one keeper, or none has room for it.
        """
        tokens, page_tokens = work.prompt_tokens - prefix.tokens, prefix.page_tokens
        degree = self._schemes.degree(tokens, wanted, page_tokens)
        able = [each for each in free if beside_answer(work, prefix, each) >= tokens]
        if tokens > self._settings.decode_span_tokens or degree > len(free) or not able:
            return []
        owner = min(able, key=quick_first(speeds, partial(burden, prefix)))
        others = sorted(free, key=quick_first(speeds, partial(preference, prefix)))
        others.remove(owner)
        taken = slow_first(others[: degree - 1], speeds)
        return [(member, tokens) for member, _ in (*taken, owner)]

    def _ranks(
        self,
        work: Work,
        prefix: Prefix,
        free: list[tuple[Member, int]],
        wanted: int,
        speeds: Mapping[str, float],
    ) -> list[tuple[Member, int]]:
        """At least `wanted` members, the owner last, with the tokens of prompt that each can keep.

        Empty if they have too little room together.
        """
        tokens, page_tokens = work.prompt_tokens - prefix.tokens, prefix.page_tokens
        last = (tokens - 1) % page_tokens + 1  # the tokens on the last page
        for ranks in range(wanted, (work.options.sp_degree or len(free)) + 1):
            degree = self._schemes.degree(tokens, ranks, page_tokens)
            if degree > len(free):
                break
            best = sorted(free, key=quick_first(speeds, partial(preference, prefix)))[:degree]
            kept = [(each, pages * page_tokens) for each, pages in slow_first(best, speeds)]
            able = [each for each in best if beside_answer(work, prefix, each) >= last]
            if not able:
                continue
            owner = min(able, key=quick_first(speeds, partial(burden, prefix)))
            kept.remove((owner[0], owner[1] * page_tokens))
            kept.append((owner[0], beside_answer(work, prefix, owner)))
            if fits(tokens, [room for _, room in kept], page_tokens):
                return kept
        return []


def _threads(member: Member, fleet: Fleet) -> int:
    """The threads that a prefill of one member may use.

    Shards on the same host lend theirs if neither they nor this one have a request, so that none is
    slowed.
    """
    shard, here = member.shard, fleet.beside(member)
    if shard.followers or shard.cores <= shard.threads or not all(each.is_idle for each in here):
        return shard.threads
    lent = sum(each.shard.threads for each in here if each.shard.role == shard.role)
    return max(shard.threads, min(lent, shard.cores))


def _named(rooms: list[tuple[Member, int]]) -> list[tuple[str, int]]:
    return [(member.shard.id, pages) for member, pages in rooms]
