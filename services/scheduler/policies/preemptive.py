"""The base class of policies that preempt prefills. Each says what is urgent; a shard computes the
most urgent prefill first (services/prefill/compute_queue.py)."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import TypeGuard

from sps2.common.config import Scheduler
from sps2.services.scheduler.chunks import Chunks, each
from sps2.services.scheduler.decisions import Decision, Hold, LookUp, Start, Urge
from sps2.services.scheduler.fleet_state import Member
from sps2.services.scheduler.placing import Ahead, Placing
from sps2.services.scheduler.plan import Plan, Wait
from sps2.services.scheduler.policies.fcfs import LOOKAHEAD, OVERTAKINGS
from sps2.services.scheduler.request import Request
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.view import View

APART = 2.0
"""Two prefills share a shard only if one has at least this many times as much left as the other."""

SMALL, LARGE = 1 / 32, 1 / 8
"""A request that takes at most so much of all room is small; one that takes more than that, large.

A large one leaves room for a small one while small ones run.
"""


class Preemptive(ABC):
    """Starts the most urgent request first, also on shards that prefill others.

    A prompt starts beside others if its work differs enough from what is left of theirs: the shards
    then compute the more urgent one first. Of two prompts with about equal work the second waits,
    since sharing a shard would only delay the first. One that resumes an answer comes before all
    others, and counts as a single token: its caller has begun to read.

    A prefill that is held back gets a share of every shard's time. Once `OVERTAKINGS` requests have
    passed one that waits for room, those behind it may start only if it will have that room when
    all have ended that were launched before (EASY backfilling: Lifka, "The ANL/IBM SP Scheduling
    System", 1995; ends are not predicted here). Until so many have passed it, one that needs much
    room does not take the last of it from those that need little.
    """

    OVERTAKES = True
    """Whether a less urgent request may start while a more urgent one waits for shards."""
    NOTICEABLE: float
    """The smallest change of urgency that is sent to the shards of a prefill under way."""

    def __init__(self, settings: Scheduler, schemes: Schemes) -> None:
        self.placing = Placing(settings, schemes)
        self.chunks = Chunks(schemes, each(settings.chunk_tokens), settings.prefill_span_tokens)
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
        (_, left_s), (_, others_s) = self.work_s(view, request), self.work_s(view, other)
        return other.plan is not None and not self.may_share(request, left_s, other, others_s)

    def decide(self, view: View) -> Iterator[Decision]:
        for request in list(self.changed(view)):
            urgency = self.urgency(view, request)
            if abs(urgency - request.urgency) >= self.NOTICEABLE:
                yield Urge(request.id, urgency)
        held, left_s = 0, dict[str, float]()
        kept: Request | None = None
        for request in sorted(view.between_chunks(), key=lambda each: -each.urgency):
            yield view.proceed(request, self, self._ahead(view, request, left_s))
        for request in view.in_line(partial(self.urgency, view)):
            decision = view.consider(request, self, self._ahead(view, request, left_s))
            if isinstance(decision, Start):
                decision = self._with_room(view, request, decision.plan, kept)
            elif kept is None and _waits_too_long(decision, request):
                kept, decision = request, replace(decision, keeps_room=True)
            yield decision
            match decision:
                case LookUp():
                    return
                case Hold(_, wait) if wait.cause in ("room", "shards"):
                    held += 1
                    if held == LOOKAHEAD or (wait.cause == "shards" and not self.OVERTAKES):
                        return

    def _with_room(
        self, view: View, request: Request, plan: Plan, kept: Request | None
    ) -> Start | Hold:
        """Starts a request, unless that would take room that is kept for others."""
        if kept is not None and self._takes_room(view, plan, kept):
            return Hold(request.id, Wait("room", f"room for its KV besides that of {kept.id}"))
        may_wait = request.overtaken < OVERTAKINGS and not request.work.resumes
        if may_wait and _takes_last(view, plan):
            return Hold(request.id, Wait("room", "room for its KV besides that of short requests"))
        return Start(request.id, plan, self.urgency(view, request))

    def _takes_room(self, view: View, plan: Plan, kept: Request) -> bool:
        """Whether a plan takes room that `kept` would have once others have left."""
        assert kept.keeps_room_since is not None
        beside = (plan, *view.launched_since(kept.keeps_room_since))
        return not self.placing.has_room_beside(kept.work, beside, view.fleet)

    def work_s(self, view: View, request: Request) -> tuple[float, float]:
        """Predicted seconds of a prompt on one shard, and how many of them are left."""
        tokens, cached = request.work.prompt_tokens, view.cached_tokens(request)
        if request.work.resumes:
            tokens, cached = 1, 0
        work_s = self._schemes.alone_s(tokens - cached, cached)
        return work_s, work_s * max(1, tokens - cached - request.computed) / (tokens - cached)

    def may_share(self, request: Request, left_s: float, other: Request, others_s: float) -> bool:
        """Whether a request may start on a shard that prefills another one.

        By default that is so if much more is left of one than of the other, so that the other is
        hardly delayed.

        Args:
            left_s, others_s: predicted seconds left of both, on one shard.
        """
        return left_s >= APART * others_s or others_s >= APART * left_s

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
                if not self.may_share(request, mine_s, other, left_s[id]):
                    return None
                before += left_s[id] * (other.urgency >= urgency)
            return before

        return ahead


def _waits_too_long(decision: Decision, request: Request) -> TypeGuard[Hold]:
    """Whether it is held for want of room, and too many have passed it."""
    waits = isinstance(decision, Hold) and decision.wait.cause == "room"
    return waits and request.overtaken >= OVERTAKINGS


def _takes_last(view: View, plan: Plan) -> bool:
    """Whether a large request would leave no room for a small one while small ones run."""
    total, takes = sum(view.fleet.room.total.values()), sum(plan.takes.values())
    left = sum(pages for _, pages in view.fleet.with_room()) - takes
    if takes <= LARGE * total or left >= SMALL * total:
        return False
    running = (sum(each.takes.values()) for each in view.launched_since(0))
    return any(pages <= SMALL * total for pages in running)
