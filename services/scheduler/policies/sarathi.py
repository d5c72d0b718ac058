"""Sarathi-Serve: prompts in chunks, in passes that take the decode steps of the shard along.

Source: Sarathi-Serve (arXiv 2403.02310, sections 4.1 to 4.3): stall-free batching.
"""

from collections.abc import Iterator, Sequence
from sys import maxsize

from sps2.common.config import Scheduler
from sps2.services.scheduler.chunks import Chunks
from sps2.services.scheduler.decisions import Decision, Hold, LookUp
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.fleet_state import Member
from sps2.services.scheduler.placing import Ahead
from sps2.services.scheduler.policies.distserve import on_one_shard
from sps2.services.scheduler.policies.fcfs import Fcfs
from sps2.services.scheduler.request import Request
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.view import View

BUDGET = 512
"""Tokens of a pass if the configuration has no `chunk_tokens`."""


class Sarathi(Fcfs):
    """First come, first served, with a budget of tokens for every pass of a shard.

    Each answer that the shard decodes takes one token of it. The rest goes to the prompts that have
    begun, and then to new ones, in order of arrival; a pass has room for a page of prompt at least.
    A prompt is computed where its KV is kept. So no answer waits for more than one such pass.
    """

    def __init__(self, settings: Scheduler, schemes: Schemes) -> None:
        super().__init__(on_one_shard(settings), schemes)
        self._budget = settings.chunk_tokens or BUDGET
        self.chunks = Chunks(schemes, self._left_for, maxsize, shares_steps=True)

    def decide(self, view: View) -> Iterator[Decision]:
        for request in view.between_chunks():
            yield view.proceed(request, self, self._where_it_began(request))
        for request in view.waiting():
            decision = view.consider(request, self, self._ahead)
            yield decision
            if isinstance(decision, LookUp) or (
                isinstance(decision, Hold) and decision.wait.cause in ("room", "shards")
            ):
                return

    def _left_for(self, fleet: Fleet, group: Sequence[str]) -> int:
        return min(self._left(fleet.members[shard]) for shard in group)

    def _left(self, member: Member) -> int:
        """Tokens of the next pass that no answer and no chunk under way takes."""
        beside_answers = max(member.shard.page_tokens, self._budget - len(member.owned))
        return beside_answers - sum(member.prefilled.values())

    def _ahead(self, member: Member) -> float | None:
        left = self._left(member)
        return None if left < member.shard.page_tokens else float(self._budget - left)

    def _where_it_began(self, request: Request) -> Ahead:
        plan = request.plan

        def ahead(member: Member) -> float | None:
            began = plan is not None and member.shard.id in plan.group
            return self._ahead(member) if began else None

        return ahead
