"""The default policy: little work first, preempting longer prefills, so that no short prompt waits.

Source of the order: PREFLOW (vllm-ascend issue 16360), which minimises the mean slowdown.
"""

from collections.abc import Iterator
from functools import partial
from math import log2

from sps2.common.config import Scheduler
from sps2.services.scheduler.decisions import Decision, Hold, LookUp, Start, Urge
from sps2.services.scheduler.fleet import Member
from sps2.services.scheduler.placing import Ahead, Placing
from sps2.services.scheduler.policies.fcfs import LOOKAHEAD, OVERTAKINGS
from sps2.services.scheduler.request import Request
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.view import View

AGE_S = 5.0
"""Waiting for so long doubles a request's priority."""
APART = 2.0
"""Prefills share a shard if what is left of one takes so many times as long as of the other."""
PRIORITY = 16
"""A step of priority counts like waiting so many times `AGE_S` longer."""
NOTICEABLE = 1.0
"""A prefill under way is told its urgency again when that has changed by so much: its remaining
work has halved."""


class Sps2:
    """Orders requests by 2^(age / `AGE_S`) / (work * work left), the largest first.

    Work is the predicted arithmetic of the prompt without its cached prefix. A prompt starts on
    shards that prefill others if its work differs enough from what is left of theirs: the shards
    then compute the more urgent one first. Of two prompts with about equal work the second waits,
    since sharing a shard would only delay the first. One that resumes an answer counts as a single
    token: its caller has begun to read.

    No request waits for ever. Ages grow alike, so that a request is overtaken only by those that
    come within `AGE_S` times log2 of the ratio of the priorities; a prefill that is held back gets
    a share of every shard's time; `OVERTAKINGS` bounds who passes one that waits for room.
    """

    def __init__(self, settings: Scheduler, schemes: Schemes) -> None:
        self.placing = Placing(settings, schemes)
        self._schemes = schemes

    def precedes(self, view: View, other: Request, request: Request) -> bool:
        if self._urgency(view, other) >= self._urgency(view, request):
            return True
        return other.plan is not None and self._are_alike(view, other, request)

    def decide(self, view: View) -> Iterator[Decision]:
        urgency = partial(self._urgency, view)
        for request in view.progressed:
            if abs(urgency(request) - request.urgency) >= NOTICEABLE:
                yield Urge(request.id, urgency(request))
        held = 0
        for request in sorted(
            view.waiting(), key=lambda each: (not each.work.resumes, -urgency(each))
        ):
            decision = view.consider(request, self, self._ahead(view, request))
            if isinstance(decision, Start):
                decision = Start(request.id, decision.plan, urgency(request))
            yield decision
            match decision:
                case LookUp():
                    return
                case Hold(_, wait) if wait.cause in ("room", "shards"):
                    held += 1
                    keeps = wait.cause == "room" and request.overtaken >= OVERTAKINGS
                    if held == LOOKAHEAD or keeps:
                        return

    def _urgency(self, view: View, request: Request) -> float:
        """log2 of the priority, without what grows alike for all: the time."""
        work_s, left_s = self._work_s(view, request)
        waited = request.submitted_s / AGE_S
        return PRIORITY * request.work.priority - waited - log2(work_s) - log2(left_s)

    def _work_s(self, view: View, request: Request) -> tuple[float, float]:
        """Predicted seconds of a prompt on one shard, and how many of them are left."""
        tokens, cached = request.work.prompt_tokens, view.cached_tokens(request)
        if request.work.resumes:
            tokens, cached = 1, 0
        work_s = self._schemes.alone_s(tokens - cached, cached)
        return work_s, work_s * max(1, tokens - cached - request.computed) / (tokens - cached)

    def _are_alike(self, view: View, one: Request, other: Request) -> bool:
        """Whether about as much work is left of both, so that sharing a shard gains nothing."""
        (_, left_s), (_, others_s) = self._work_s(view, one), self._work_s(view, other)
        return _alike(left_s, others_s)

    def _ahead(self, view: View, request: Request) -> Ahead:
        """See `Placing.plan`: the seconds of more urgent prefills on a shard."""
        urgency, (_, mine_s) = self._urgency(view, request), self._work_s(view, request)
        left_s: dict[str, float] = {}

        def ahead(member: Member) -> float | None:
            if not member.prefilled:
                return 0.0
            if member.shard.followers:
                return None
            before = 0.0
            for id in member.prefilled:
                other = view.prefilling[id]
                if id not in left_s:
                    left_s[id] = self._work_s(view, other)[1]
                if _alike(mine_s, left_s[id]):
                    return None
                before += left_s[id] * (other.urgency >= urgency)
            return before

        return ahead


def _alike(one_s: float, other_s: float) -> bool:
    return one_s < APART * other_s and other_s < APART * one_s
