"""Placement: which shards prefill a prompt, and which keep its KV."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from sps2.common.config import Scheduler
from sps2.common.errors import Invalid
from sps2.common.messages import CachedRun, Placement
from sps2.common.spans import Span, fits, paged_split, pages_for
from sps2.common.words import counted
from sps2.services.scheduler.cached_prefix import Prefix, usable
from sps2.services.scheduler.degrees import Degrees
from sps2.services.scheduler.fleet import Fleet, Member
from sps2.services.scheduler.plan import Plan, Wait, Work
from sps2.services.scheduler.schemes import Capacity, Partition, Schemes
from sps2.services.scheduler.traffic import PrefixQuery
from sps2.services.scheduler.unreachable import connected

Ahead = Callable[[Member], float | None]
"""How much a shard computes before a prompt that it gets now; None if it may not take it now."""


def idle(member: Member) -> float | None:
    """Only shards without a prefill may take a prompt."""
    return None if member.prefilled else 0.0


class Placing:
    """Makes plans: SP degree by prompt length and prediction, KV where the most pages are free.

    Among mixed shards, those with the most free pages prefill. One of them keeps all KV of a short
    prompt; of a long prompt each keeps the KV that it computed.

    Args:
        shrinks: the fewest of the mixed shards that prefill a prompt keep its KV, if they have room
            for it; that of the others moves to them during the prefill.
    """

    def __init__(self, settings: Scheduler, schemes: Schemes, shrinks: bool = False) -> None:
        self._settings = settings
        self._schemes = schemes
        self._degrees = Degrees(schemes)
        self._shrinks = shrinks

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

    def _plan(
        self, work: Work, cached: Sequence[CachedRun], fleet: Fleet, ahead: Ahead
    ) -> Plan | Wait:
        plan_by = self._in_place if fleet.in_place and not self._shrinks else self._separate
        prefix = usable(cached, work.prompt_tokens, fleet)
        best = plan_by(work, Prefix((), prefix.page_tokens), fleet, ahead)
        parts = [prefix, prefix.in_memory] if prefix.from_disk else [prefix]
        for part in reversed(parts):
            if part.runs and all(pages >= 0 for _, pages in _room(part, fleet)):
                found = plan_by(work, part, fleet, ahead)
                if isinstance(found, Plan) and (
                    not isinstance(best, Plan) or found.predicted_s <= best.predicted_s
                ):
                    best = found
        return best

    def _separate(self, work: Work, prefix: Prefix, fleet: Fleet, ahead: Ahead) -> Plan | Wait:
        tokens = work.prompt_tokens - prefix.tokens
        wanted = self.degree(work, tokens, fleet)
        if absent := _absent(wanted, work, fleet):
            return absent
        pools = _pools(fleet)
        if not _has_room(grown(work), Prefix((), prefix.page_tokens), pools):
            return _too_large(work, pools, fleet)
        group = self._group(tokens, wanted, fleet, ahead)
        if group is None:
            return Wait("shards")
        placements = self._place(work, prefix, fleet, group)
        if placements is None:
            return Wait("room")
        partition = self._schemes.choose(tokens, len(group), work.options)
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
            partition = self._schemes.behind(partition, prefix.tokens, queries, len(prefix.spans))
        alone = len(group) == 1 and work.options.sp_degree is None
        threads = _threads(fleet.members[group[0]], fleet) if alone else 0
        held = [
            sum(span.tokens for span in (*place.shared, place.span)) for place in placements[:-1]
        ]
        pays_after = self._schemes.migration_pays_after(held)
        return Plan(tuple(group), partition, tuple(placements), pays_after, prefix, threads)

    def _group(self, tokens: int, wanted: int, fleet: Fleet, ahead: Ahead) -> list[str] | None:
        members = fleet.prefillers()
        able = _able(members, ahead)
        if wanted == 1 and (not able or ahead(able[0])):
            able = self._joinable(tokens, members) or able
        return [member.shard.id for member in able[:wanted]] if wanted <= len(able) else None

    def _joinable(self, tokens: int, members: Sequence[Member]) -> list[Member]:
        """Members busy with short prompts that `tokens` tokens can join, the least busy first."""
        most = self._settings.pass_tokens
        able = [member for member in members if member.could_take(tokens, most)]
        return sorted(able, key=lambda member: sum(member.prefilled.values()))

    def degree(self, work: Work, tokens: int, fleet: Fleet) -> int:
        """How many shards are to prefill `tokens` tokens; may be more than are present.

        Raises:
            Invalid: the request wants more than there can be.
        """
        shards = fleet.most_prefillers()
        forced = work.options.sp_degree
        if forced is not None and forced > shards:
            raise Invalid(
                f"sp_degree {forced} is more than the cluster's "
                f"{counted(shards, f'{fleet.prefilling} shard')}",
                "sps2.sp_degree",
                "invalid_value",
            )
        if forced is not None:
            return forced
        present = fleet.prefillers()
        most = min(len(present), pages_for(tokens, self._settings.prefill_span_tokens))
        idle = sum(not member.prefilled for member in present)
        gathers = fleet.in_place and tokens <= self._settings.decode_span_tokens
        return self._degrees.best(tokens, most, idle, work.options, gathers)

    def _place(
        self, work: Work, prefix: Prefix, fleet: Fleet, group: Sequence[str]
    ) -> tuple[Placement, ...] | None:
        free = _room(prefix, fleet)
        if not _has_room(work, prefix, free):
            return None
        tokens = work.prompt_tokens - prefix.tokens
        wanted = pages_for(tokens, self._settings.decode_span_tokens)
        if self._shrinks:
            among = [each for each in free if each[0].shard.id in group]
            free = among if _has_room(work, prefix, among) else free
        for holders in range(max(1, min(wanted, len(free))), len(free) + 1):
            if found := _fit(work, prefix, free, holders):
                return found
        return None

    def _in_place(self, work: Work, prefix: Prefix, fleet: Fleet, ahead: Ahead) -> Plan | Wait:
        tokens = work.prompt_tokens - prefix.tokens
        wanted = self.degree(work, tokens, fleet)
        if absent := _absent(wanted, work, fleet):
            return absent
        roomy = [each for each in _room(prefix, fleet) if each[1] > 0]
        if work.options.sp_degree is None:  # a shard can be full for a long time
            wanted = max(1, min(wanted, len(roomy)))
        free = [each for each in roomy if ahead(each[0]) is not None]
        alone = self._for_one_keeper(work, prefix, free, wanted)
        ranks = alone or self._ranks(work, prefix, free, wanted)
        if wanted == 1 and not free:
            rooms = {member.shard.id: pages for member, pages in roomy}
            for member in self._joinable(tokens, [member for member, _ in roomy]):
                ranks = ranks or self._ranks(work, prefix, [(member, rooms[member.shard.id])], 1)
        if not ranks:
            pools = _pools(fleet)
            if not self._ranks(grown(work), Prefix((), prefix.page_tokens), pools, wanted):
                return _too_large(work, pools[: work.options.sp_degree], fleet)
            return Wait("shards" if self._ranks(work, prefix, roomy, wanted) else "room")
        group = [member.shard.id for member, _ in ranks]
        capacity = Capacity(tuple(room for _, room in ranks), prefix.page_tokens)
        partition = self._schemes.choose(tokens, max(wanted, len(group)), work.options, capacity)
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
        self, work: Work, prefix: Prefix, free: list[tuple[Member, int]], wanted: int
    ) -> list[tuple[Member, int]]:
        """`wanted` members that compute a prompt, all of whose KV the last of them keeps.

        See `_ranks`; empty if the prompt is too long for one keeper, or none has room for it.
        """
        tokens, page_tokens = work.prompt_tokens - prefix.tokens, prefix.page_tokens
        degree = self._schemes.degree(tokens, wanted, page_tokens)
        able = [each for each in free if _beside_answer(work, prefix, each) >= tokens]
        if tokens > self._settings.decode_span_tokens or degree > len(free) or not able:
            return []
        owner = min(able, key=partial(_burden, prefix))
        others = sorted(free, key=partial(_preference, prefix))
        others.remove(owner)
        return [(member, tokens) for member, _ in (*others[: degree - 1], owner)]

    def _ranks(
        self, work: Work, prefix: Prefix, free: list[tuple[Member, int]], wanted: int
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
            best = sorted(free, key=partial(_preference, prefix))[:degree]
            kept = [(member, pages * page_tokens) for member, pages in best]
            able = [each for each in best if _beside_answer(work, prefix, each) >= last]
            if not able:
                continue
            owner = min(able, key=partial(_burden, prefix))
            kept.remove((owner[0], owner[1] * page_tokens))
            kept.append((owner[0], _beside_answer(work, prefix, owner)))
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


def _able(members: Sequence[Member], ahead: Ahead) -> list[Member]:
    """Members that may take a prompt now: those with the least ahead of it, then those that were
    given the fewest so far, so that a long prompt's shards are held back alike."""
    found = [(before, member) for member in members if (before := ahead(member)) is not None]
    found.sort(key=lambda each: (each[0], each[1].given))
    return [member for _, member in found]


def grown(work: Work) -> Work:
    """A request that reserves room for its whole answer."""
    return replace(work, reserved_tokens=None)


def _beside_answer(work: Work, prefix: Prefix, each: tuple[Member, int]) -> int:
    """Tokens of prompt that an owner can keep.

    Beside them it has room for the first tokens of the answer now, and for all of it if nothing
    else is there.
    """
    (member, pages), page_tokens = each, prefix.page_tokens
    shared = sum(span.tokens for span in prefix.spans.get(member.shard.id, ()))
    whole = member.shard.pages * page_tokens - shared - work.max_tokens
    return min(pages * page_tokens - work.first_tokens, whole)


def _room(prefix: Prefix, fleet: Fleet) -> list[tuple[Member, int]]:
    """Members that keep KV, with the pages that are free besides those of the prefix."""
    room = fleet.with_room()
    if not prefix.runs:
        return room
    return [(member, pages - prefix.takes(member.shard.id)) for member, pages in room]


def _burden(prefix: Prefix, each: tuple[Member, int]) -> tuple[int, int]:
    """Sort key of owners: fewest owned requests first, then most room.

    A shard with the prefix counts one less: unless it owns, every step sends it queries.
    """
    member, room = each
    return len(member.owned) - (member.shard.id in prefix.spans), -room


def _preference(prefix: Prefix, each: tuple[Member, int]) -> tuple[int, int]:
    """Sort key of keepers: most room first, or as `_burden` if there is a prefix."""
    return _burden(prefix, each) if prefix.runs else (0, -each[1])


def _absent(wanted: int, work: Work, fleet: Fleet) -> Wait | None:
    """Why a request waits that wants more prefill shards than are present; None if it does not."""
    present = len(fleet.prefillers())
    if 0 < wanted <= present:
        return None
    what = f"sp_degree {work.options.sp_degree}" if work.options.sp_degree else "a request"
    return Wait("absent", f"{what} needs more {fleet.prefilling} shards than the {present} there")


def _pools(fleet: Fleet) -> list[tuple[Member, int]]:
    """Members that keep KV, with all their pages."""
    total = fleet.room.total
    members = fleet.keepers()
    return [(each, total[each.shard.id]) for each in members if each.shard.id in total]


def _has_room(work: Work, prefix: Prefix, free: list[tuple[Member, int]]) -> bool:
    """Whether `free` pages suffice: the owner's for the answer, all together for all tokens.

    The owner also keeps the last page of the prompt.
    """
    tokens = work.prompt_tokens - prefix.tokens
    last = (tokens - 1) % prefix.page_tokens + 1
    most = max((pages for _, pages in free), default=0)
    together = sum(pages for _, pages in free if pages > 0)
    return (
        pages_for(last + work.first_tokens, prefix.page_tokens) <= most
        and pages_for(tokens + work.first_tokens, prefix.page_tokens) <= together
    )


def _fit(
    work: Work, prefix: Prefix, free: list[tuple[Member, int]], holders: int
) -> tuple[Placement, ...] | None:
    """Placements on the `holders` preferred members, in proportion to the room of each.

    The owner's room is what the answer leaves. None if the room is too small.
    """
    page_tokens, first = prefix.page_tokens, prefix.tokens
    tokens = work.prompt_tokens - first
    last = (tokens - 1) % page_tokens + 1
    most = sorted(free, key=partial(_preference, prefix))[:holders]
    able = [each for each in most if _beside_answer(work, prefix, each) >= last]
    if not able:
        return None
    owner = min(able, key=partial(_burden, prefix))
    most.remove(owner)
    own_pages = (_beside_answer(work, prefix, owner) - last) // page_tokens + 1
    rooms = [max(0, pages) for _, pages in most] + [own_pages]
    if sum(rooms) < pages_for(tokens, page_tokens):
        return None
    placements = []
    spans = paged_split(tokens, rooms, page_tokens)
    for (member, _), own in zip([*most, owner], spans, strict=True):
        kept_tokens = own.tokens + (work.first_tokens if member is owner[0] else 0)
        if kept_tokens:
            span = Span(own.start + first, own.stop + first)
            pages = pages_for(kept_tokens, page_tokens)
            placements.append(prefix.placed(member.shard.id, span, pages))
    return (*prefix.besides([place.shard for place in placements]), *placements)


def _too_large(work: Work, pools: list[tuple[Member, int]], fleet: Fleet) -> Wait:
    """Why a request waits that does not fit even empty pools.

    Raises:
        Invalid: all shards are present, so that waiting cannot help.
    """
    tokens = sum(pages * member.shard.page_tokens for member, pages in pools)
    prompt = counted(work.prompt_tokens, "token")
    needs = f"{prompt} of prompt and up to {work.max_tokens} of answer"
    if not fleet.keeps_all():
        return Wait("absent", f"{needs} do not fit the {tokens} tokens of KV that are there")
    raise Invalid(
        f"{needs} do not fit the KV pools of the shards that may keep them, {tokens} tokens, with "
        "the answer on one of them; ask for fewer tokens or enlarge kv.pool_tokens",
        None,
        "context_length_exceeded",
    )
