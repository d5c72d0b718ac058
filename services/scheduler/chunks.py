"""Long prompts in chunks: one after another, each attending to what the earlier ones left.

The KV of a chunk is kept where the plan says, and its full pages are cached. So a rank's memory
does not grow with the prompt, the SP degree can change from chunk to chunk, and a prefill that was
lost goes on behind its last whole chunk.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from sps2.common.errors import Invalid
from sps2.common.spans import Span, pages_for
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.hardware import Wire
from sps2.services.scheduler.placing import Ahead
from sps2.services.scheduler.plan import Plan, Wait, Work
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.traffic import PrefixQuery
from sps2.services.scheduler.unequal import least_rate

SHARED_S = 0.25
"""Decode steps run in passes of prompts that are predicted to take up to this long, so that no
answer waits longer for a token. A mixed shard computes a prompt of its own in chunks of that
length, if they have `LEAST_TOKENS`."""
LEAST_TOKENS = 512
"""Shorter chunks would read the model's weights for too little arithmetic."""
SLOW = 0.5
"""A shard that is no faster than this, relative to the fastest, joins no prompt between chunks; nor
does one whose link is no better."""
SLACK = 1.1
"""A chunk counts as that short up to this factor: it is cut at a page."""
Budget = Callable[[Fleet, Sequence[str]], int]
"""How many tokens a group of shards may compute in a chunk that begins now."""


def each(tokens: int) -> Budget:
    """Every shard of a group computes about as many tokens of a chunk. 0: no prompt is cut."""
    return lambda fleet, group: len(group) * tokens or sys.maxsize


class Chunks:
    """Cuts plans into chunks.

    Args:
        budget: of a chunk; it has a page at least.
        span_tokens: of a prompt for which one more shard is used.
        shares_steps: whether decode steps run in the passes of all chunks; by default they do in
            short passes of mixed shards. See `messages.Prefill`.
    """

    def __init__(
        self, schemes: Schemes, budget: Budget, span_tokens: int, shares_steps: bool = False
    ) -> None:
        self._schemes = schemes
        self._budget = budget
        self._span_tokens = span_tokens
        self._shares_steps = shares_steps

    def first(self, plan: Plan, work: Work, fleet: Fleet) -> Plan:
        """The plan of the first chunk of a request, given that of its whole prompt."""
        start = plan.chunk.start
        stop = self._stop(plan, work, plan.group, start, fleet)
        if stop < plan.chunk.stop:
            plan = self._chunk(plan, work, plan.group, Span(start, stop), fleet)
        return self._shared(plan, fleet)

    def following(self, plan: Plan, work: Work, fleet: Fleet, ahead: Ahead) -> Plan | Wait:
        """The plan of the chunk after that of `plan`, on shards that may prefill now.

        Those of the chunk before come first, then those that keep KV of the prompt. There are fewer
        if some cannot reach each other, or if the requested method needs another number. A mixed
        shard that began alone goes on alone, whatever else it prefills: it has the KV.
        """
        start, keepers = plan.chunk.stop, {place.shard for place in plan.placements}
        if self._goes_on_alone(plan.group, fleet) and plan.group[0] in fleet.members:
            stop = self._stop(plan, work, plan.group, start, fleet)
            chunk = self._chunk(plan, work, plan.group, Span(start, stop), fleet)
            return self._shared(chunk, fleet)
        speeds, wires = fleet.relative_speeds(), fleet.relative_wires()
        able = {
            member.shard.id: before
            for member in fleet.prefillers()
            if (before := ahead(member)) is not None
            and not fleet.pairs_apart({member.shard.id, *keepers})
            and (
                member.shard.id in plan.group
                or speeds.get(member.shard.id, 1.0) * wires.get(member.shard.id, Wire()).rate > SLOW
            )
        }
        order = sorted(
            able, key=lambda shard: (shard not in plan.group, shard not in keepers, able[shard])
        )
        forced = work.options.sp_degree
        group = order[: forced or pages_for(work.prompt_tokens - start, self._span_tokens)]
        while len(group) >= (forced or 1):
            if not fleet.pairs_apart(group):
                stop = self._stop(plan, work, group, start, fleet)
                with suppress(Invalid):
                    chunk = self._chunk(plan, work, group, Span(start, stop), fleet)
                    return self._shared(chunk, fleet)
            group.pop()
        return Wait("shards")

    def _shared(self, plan: Plan, fleet: Fleet) -> Plan:
        """The plan, with decode steps in its passes if they are short enough."""
        is_short = plan.partition.predicted_s <= SHARED_S * SLACK
        takes_steps = is_short and _can_share(plan.group, fleet)
        return replace(plan, shares_steps=self._shares_steps or takes_steps)

    def _goes_on_alone(self, group: Sequence[str], fleet: Fleet) -> bool:
        """Whether one mixed shard computes a prompt in short chunks and keeps its KV."""
        return not self._shares_steps and len(group) == 1 and _can_share(group, fleet)

    def _stop(self, plan: Plan, work: Work, group: Sequence[str], start: int, fleet: Fleet) -> int:
        """Where a chunk ends that begins at `start`: with the prompt, or with a page."""
        most, page_tokens = self._budget(fleet, group), plan.prefix.page_tokens
        if self._goes_on_alone(group, fleet):
            shared = self._schemes.tokens_within(SHARED_S, start)
            most = min(most, shared if shared >= LEAST_TOKENS else most)
        if work.prompt_tokens - start <= most:
            return work.prompt_tokens
        pages = max(start // page_tokens + 1, (start + most) // page_tokens)
        return min(work.prompt_tokens, pages * page_tokens)

    def _chunk(
        self, plan: Plan, work: Work, group: Sequence[str], chunk: Span, fleet: Fleet
    ) -> Plan:
        speeds, wires = fleet.speeds_of(group), fleet.wires_of(group)
        partition = self._schemes.choose(
            chunk.tokens, len(group), work.options, speeds=speeds, wires=wires
        )
        partition = partition.after(chunk.start)
        group = tuple(group[: len(partition.spans)])
        if kept := plan.before(chunk.start):
            queries = [
                PrefixQuery(own, theirs)
                for rank, own in zip(group, partition.spans, strict=True)
                for shard, theirs in kept.items()
                if shard != rank
            ]
            rate = least_rate(fleet, [*group, *kept])
            partition = self._schemes.behind(partition, chunk.start, queries, len(kept), rate)
        left, threads = work.prompt_tokens - chunk.stop, plan.threads if len(group) == 1 else 0
        return replace(
            plan,
            group=group,
            partition=partition,
            threads=threads,
            rest_s=self._schemes.alone_s(left, chunk.stop) / (sum(speeds) or len(group)),
        )


def _can_share(group: Sequence[str], fleet: Fleet) -> bool:
    """Whether passes of these shards can take decode steps along: those of one process can."""
    members = [fleet.members.get(shard) for shard in group]
    return fleet.in_place and not any(each and each.shard.followers for each in members)
