"""What policies have in common that preempt prefills: they differ in what is urgent."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import partial

from sps2.common.config import Scheduler
from sps2.services.scheduler.decisions import Decision, Hold, LookUp, Start, Urge
from sps2.services.scheduler.fleet import Member
from sps2.services.scheduler.placing import Ahead, Placing
from sps2.services.scheduler.policies.fcfs import LOOKAHEAD, OVERTAKINGS
from sps2.services.scheduler.request import Request
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.view import View

APART = 2.0
"""Prefills share a shard if what is left of one takes so many times as long as of the other."""


class Preemptive(ABC):
    """Starts the most urgent request first, also on shards that prefill others.

    A prompt starts beside others if its work differs enough from what is left of theirs: the shards
    then compute the more urgent one first. Of two prompts with about equal work the second waits,
    since sharing a shard would only delay the first. One that resumes an answer comes before all
    others, and counts as a single token: its caller has begun to read.

    A prefill that is held back gets a share of every shard's time; `OVERTAKINGS` bounds who passes
    a request that waits for room.
    """

    NOTICEABLE: float
    """A prefill under way is told its urgency again when that has changed by so much."""

    def __init__(self, settings: Scheduler, schemes: Schemes) -> None:
        self.placing = Placing(settings, schemes)
        self._schemes = schemes

    @abstractmethod
    def urgency(self, view: View, request: Request, since_s: float | None = None) -> float:
        """How urgent a request is now; the larger, the sooner.

        Args:
            since_s: since when it waits; by default `View.since_s`.
        """

    def changed(self, view: View) -> Iterable[Request]:
        """Prefills whose urgency may have changed: those that progressed."""
        return view.progressed

    def precedes(self, view: View, other: Request, request: Request) -> bool:
        if other.work.caller != request.work.caller and not view.is_next(other):
            return False
        if self.urgency(view, other) >= self.urgency(view, request):
            return True
        return other.plan is not None and self._are_alike(view, other, request)

    def decide(self, view: View) -> Iterator[Decision]:
        for request in list(self.changed(view)):
            urgency = self.urgency(view, request)
            if abs(urgency - request.urgency) >= self.NOTICEABLE:
                yield Urge(request.id, urgency)
        held, left_s = 0, dict[str, float]()
        for request in view.in_line(partial(self.urgency, view)):
            decision = view.consider(request, self, self._ahead(view, request, left_s))
            if isinstance(decision, Start):
                decision = Start(request.id, decision.plan, self.urgency(view, request))
            yield decision
            match decision:
                case LookUp():
                    return
                case Hold(_, wait) if wait.cause in ("room", "shards"):
                    held += 1
                    keeps = wait.cause == "room" and request.overtaken >= OVERTAKINGS
                    if held == LOOKAHEAD or keeps:
                        return

    def work_s(self, view: View, request: Request) -> tuple[float, float]:
        """Predicted seconds of a prompt on one shard, and how many of them are left."""
        tokens, cached = request.work.prompt_tokens, view.cached_tokens(request)
        if request.work.resumes:
            tokens, cached = 1, 0
        work_s = self._schemes.alone_s(tokens - cached, cached)
        return work_s, work_s * max(1, tokens - cached - request.computed) / (tokens - cached)

    def _are_alike(self, view: View, one: Request, other: Request) -> bool:
        """Whether about as much work is left of both, so that sharing a shard gains nothing."""
        (_, left_s), (_, others_s) = self.work_s(view, one), self.work_s(view, other)
        return _alike(left_s, others_s)

    def _ahead(self, view: View, request: Request, left_s: dict[str, float]) -> Ahead:
        """See `Placing.plan`: the seconds of more urgent prefills on a shard.

        Args:
            left_s: seconds left of prefills, by request, as far as they are computed already.
        """
        urgency, (_, mine_s) = self.urgency(view, request), self.work_s(view, request)

        def ahead(member: Member) -> float | None:
            if not member.prefilled:
                return 0.0
            if member.shard.followers:
                return None
            before = 0.0
            for id in member.prefilled:
                other = view.prefilling[id]
                if id not in left_s:
                    left_s[id] = self.work_s(view, other)[1]
                if _alike(mine_s, left_s[id]):
                    return None
                before += left_s[id] * (other.urgency >= urgency)
            return before

        return ahead


def _alike(one_s: float, other_s: float) -> bool:
    return one_s < APART * other_s and other_s < APART * one_s
