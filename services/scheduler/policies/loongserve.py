"""LoongServe: elastic sequence parallelism, first come first served.

Source: LoongServe (arXiv 2404.09526, sections 4 and 5): the SP degree of each prompt by dynamic
programming, and proactive scale-down: where KV stays is decided before the prefill.
"""

from collections.abc import Iterator, Sequence
from math import inf
from sys import maxsize
from typing import NamedTuple

from msgspec.structs import replace

from sps2.common.config import Scheduler
from sps2.common.errors import Invalid
from sps2.services.scheduler.decisions import Decision
from sps2.services.scheduler.degrees import Choice
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.fleet_state import Member
from sps2.services.scheduler.placing import Placing
from sps2.services.scheduler.plan import Work
from sps2.services.scheduler.policies.fcfs import Fcfs
from sps2.services.scheduler.request import Request
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.view import View

MOST = 16
"""Of this many requests and shards the best division is computed at once."""


class LoongServe(Fcfs):
    """First come, first served, on as many idle shards as minimise the sum of time by length.

    A shard that decodes helps to prefill if that saves the prompts more than it costs its answers.
    The fewest shards of a group that have room keep the KV and decode, so that nothing moves when
    the group shrinks after the prefill.
    """

    def __init__(self, settings: Scheduler, schemes: Schemes) -> None:
        super().__init__(settings, schemes)
        self._schemes = schemes
        self.placing = self._elastic = _Elastic(settings, schemes)

    def decide(self, view: View) -> Iterator[Decision]:
        idle = [member for member in view.fleet.prefillers() if not member.prefilled][:MOST]
        waiting = view.waiting()[: len(idle)]
        self._elastic.degrees = self._degrees(view, waiting, idle) if waiting else {}
        yield from super().decide(view)

    def _degrees(
        self, view: View, waiting: Sequence[Request], idle: Sequence[Member]
    ) -> dict[str, int]:
        """The SP degree of each request that can start, by request."""
        shards = max(1, sum(not member.owned for member in idle))
        best_s, degrees = self._shared(view, waiting, shards)
        for member in sorted((each for each in idle if each.owned), key=_owned):
            wider_s, wider = self._shared(view, waiting, shards + 1)
            answers = sum(
                1 / view.costs.answer_tokens(other.work.caller, other.work.max_tokens)
                for id in member.owned
                if (other := view.get(id)) is not None
            )
            slowest_s = max(
                self._seconds(view, request, wider[request.id])
                for request in waiting
                if request.id in wider
            )
            if best_s - wider_s <= answers * slowest_s:
                break
            best_s, degrees, shards = wider_s, wider, shards + 1
        return degrees

    def _shared(
        self, view: View, waiting: Sequence[Request], shards: int
    ) -> tuple[float, dict[str, int]]:
        """How the first requests share a number of shards, at least one each.

        Returns:
            The least sum of a request's seconds by its tokens, and the degree of each.
        """
        first = waiting[:shards]
        best = [_Shares(0.0, ()), *[_Shares(inf, ())] * shards]
        for request in first:
            tokens = request.work.prompt_tokens
            cost = [
                inf if not degree else self._seconds(view, request, degree) / tokens
                for degree in range(shards + 1)
            ]
            best = [
                min(
                    _Shares(
                        best[used - degree].cost + cost[degree],
                        (*best[used - degree].degrees, degree),
                    )
                    for degree in range(used + 1)
                )
                for used in range(shards + 1)
            ]
        least = min(best)
        return least.cost, dict(zip([each.id for each in first], least.degrees, strict=True))

    def _seconds(self, view: View, request: Request, degree: int) -> float:
        """Predicted; infinite for several shards if the requested method needs another degree."""
        options = request.work.options
        tokens = request.work.prompt_tokens - view.cached_tokens(request)
        try:
            return self._schemes.choose(tokens, options.sp_degree or degree, options).predicted_s
        except Invalid:  # one that no degree can satisfy is refused when its turn comes
            return inf if degree > 1 else self._schemes.alone_s(tokens)


class _Shares(NamedTuple):
    """The SP degrees of the first requests, and the sum of their seconds by tokens."""

    cost: float
    degrees: tuple[int, ...]


class _Elastic(Placing):
    """Placement with given SP degrees, by request."""

    def __init__(self, settings: Scheduler, schemes: Schemes) -> None:
        super().__init__(replace(settings, decode_span_tokens=maxsize), schemes, shrinks=True)
        self.degrees: dict[str, int] = {}

    def choice(self, work: Work, tokens: int, fleet: Fleet) -> Choice:
        usual = super().choice(work, tokens, fleet)
        degree = work.options.sp_degree or self.degrees.get(work.request, usual.degree)
        return usual._replace(degree=degree)


def _owned(member: Member) -> int:
    return len(member.owned)
