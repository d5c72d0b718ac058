"""Which shards have room for the KV of a request, and which are preferred to keep it."""

import math
from collections.abc import Callable, Mapping
from functools import partial

from sps2.common.messages import Placement
from sps2.common.spans import Span, paged_split, pages_for
from sps2.services.scheduler.cached_prefix import Prefix
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.fleet_state import Member
from sps2.services.scheduler.hardware import Wire
from sps2.services.scheduler.plan import Work

LINK_OCTAVES = 2
"""Links count as about equally good within so many factors of 2."""
TIERS = 4
"""Shards count as about equally fast within a factor of 2 to the power of one over this."""


def beside_answer(work: Work, prefix: Prefix, each: tuple[Member, int]) -> int:
    """Tokens of prompt that an owner can keep.

    Beside them it has room for the first tokens of the answer now, and for all of it if nothing
    else is there.
    """
    (member, pages), page_tokens = each, prefix.page_tokens
    shared = sum(span.tokens for span in prefix.spans.get(member.shard.id, ()))
    whole = member.shard.pages * page_tokens - shared - work.max_tokens
    return min(pages * page_tokens - work.first_tokens, whole)


def room_of(prefix: Prefix, fleet: Fleet) -> list[tuple[Member, int]]:
    """Members that keep KV, with the pages that are free besides those of the prefix."""
    room = fleet.with_room()
    if not prefix.runs:
        return room
    return [(member, pages - prefix.takes(member.shard.id)) for member, pages in room]


def burden(prefix: Prefix, each: tuple[Member, int]) -> tuple[int, int]:
    """Sort key of owners: fewest owned requests first, then most room.

    A shard with the prefix counts one less: unless it owns, every step sends it queries.
    """
    member, room = each
    return len(member.owned) - (member.shard.id in prefix.spans), -room


def preference(prefix: Prefix, each: tuple[Member, int]) -> tuple[int, int]:
    """Sort key of keepers: most room first, or as `burden` if there is a prefix."""
    return burden(prefix, each) if prefix.runs else (0, -each[1])


def quick_first(
    speeds: Mapping[str, float], key: Callable[[tuple[Member, int]], tuple[int, int]]
) -> Callable[[tuple[Member, int]], tuple[int, int, int]]:
    """A sort key that has faster shards first, and orders about equally fast ones by `key`.

    Args:
        speeds: relative to the fastest; empty if all are alike.
    """

    def quick(each: tuple[Member, int]) -> tuple[int, int, int]:
        speed = speeds.get(each[0].shard.id, 1.0)
        return (round(-TIERS * math.log2(speed)), *key(each))

    return quick


def good_links_first(
    wires: Mapping[str, Wire], key: Callable[[tuple[Member, int]], tuple[int, int]]
) -> Callable[[tuple[Member, int]], tuple[int, int, int]]:
    """A sort key that has better links first, and orders about equally good ones by `key`.

    Args:
        wires: relative to the best; empty if all are alike.
    """

    def good(each: tuple[Member, int]) -> tuple[int, int, int]:
        wire = wires.get(each[0].shard.id, Wire())
        return (round(math.log2(wire.lag / wire.rate) / LINK_OCTAVES), *key(each))

    return good


def pools_of(fleet: Fleet) -> list[tuple[Member, int]]:
    """Members that keep KV, with all their pages."""
    total = fleet.room.total
    members = fleet.keepers()
    return [(each, total[each.shard.id]) for each in members if each.shard.id in total]


def has_room(work: Work, prefix: Prefix, free: list[tuple[Member, int]]) -> bool:
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


def fit(
    work: Work,
    prefix: Prefix,
    free: list[tuple[Member, int]],
    holders: int,
    wires: Mapping[str, Wire],
) -> tuple[Placement, ...] | None:
    """Placements on the `holders` preferred members, in proportion to the room of each.

    Members with slow links come last: all KV moves there. The owner's room is what the answer
    leaves. None if the room is too small.
    """
    page_tokens, first = prefix.page_tokens, prefix.tokens
    tokens = work.prompt_tokens - first
    last = (tokens - 1) % page_tokens + 1
    most = sorted(free, key=good_links_first(wires, partial(preference, prefix)))[:holders]
    able = [each for each in most if beside_answer(work, prefix, each) >= last]
    if not able:
        return None
    owner = min(able, key=good_links_first(wires, partial(burden, prefix)))
    most.remove(owner)
    own_pages = (beside_answer(work, prefix, owner) - last) // page_tokens + 1
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
