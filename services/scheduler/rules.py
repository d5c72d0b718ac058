"""The rules that no plan may break, whatever policy made it."""

from collections.abc import Iterable

from sps2.common.spans import Span
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.plan import Plan, Work


def broken_rule(plan: Plan, work: Work, fleet: Fleet, after: Plan | None = None) -> str:
    """The first rule that a plan breaks, in words; empty if it can be carried out.

    Args:
        after: the plan of the chunk before, if it is not the first.
    """
    keepers = [place.shard for place in plan.placements]
    does = [(plan.group, fleet.prefillers(), "prefill"), (keepers, fleet.keepers(), "decode")]
    if after is not None:
        del does[1:]  # they have its KV already
    for shards, members, role in does:
        here = {member.shard.id for member in members}
        here |= fleet.leaving if after is not None else set()
        if not shards or len({*shards}) < len(shards) or not {*shards} <= here:
            return f"[{', '.join(shards)}] are not different {role} shards that are present"
    if pairs := fleet.pairs_apart({*plan.group, *keepers}):
        return f"{' and '.join(sorted(pairs[0]))} cannot reach each other"
    if len(plan.partition.spans) != len(plan.group):
        return f"{len(plan.group)} shards have {len(plan.partition.spans)} parts"
    cached, tokens = plan.prefix.tokens, work.prompt_tokens
    start = cached if after is None else after.chunk.stop
    stop = max((span.stop for own in plan.partition.spans for span in own), default=start)
    if stop <= start or not _covers((s for own in plan.partition.spans for s in own), start, stop):
        return f"the ranks do not compute each token from {start} on once"
    if stop > tokens or (stop < tokens and stop % plan.prefix.page_tokens):
        return f"a chunk ends at {stop}, neither with a page nor with the prompt"
    if after is not None:
        same = (plan.placements, plan.prefix) == (after.placements, after.prefix)
        return "" if same else "its KV has other places than that of the chunk before"
    if not _covers((place.span for place in plan.placements), cached, tokens):
        return f"the shards do not keep each token from {cached} to {tokens} once"
    if not _covers((span for place in plan.placements for span in place.shared), 0, cached):
        return f"the cached prefix is not all of the tokens up to {cached}"
    for place in plan.placements:
        first, most = place.span.tokens, place.span.tokens
        if place.shard == plan.owner:
            first, most = first + work.first_tokens, most + work.max_tokens
        shard = fleet.members[place.shard].shard
        for pages, tokens in ((place.pages, first), (shard.pages, most)):
            if pages * shard.page_tokens < tokens:
                return f"{pages} pages of {place.shard} are too few for {tokens} tokens"
    for id, pages in plan.takes.items():
        if pages > max(0, fleet.free(id)):
            return f"{id} has no {pages} pages to give"
    return ""


def _covers(spans: Iterable[Span], start: int, stop: int) -> bool:
    """Whether spans, in any order, have each position from `start` to `stop` once."""
    for span in sorted(span for span in spans if span.tokens):
        if span.start != start:
            return False
        start = span.stop
    return start == stop
