"""The scheduler's bookkeeping as a pure state machine: events and a clock in, actions out."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Protocol

from sps2.common.errors import Internal, Invalid, PeerLost, Refused, ServiceError
from sps2.common.messages import CachedRun, RequestStatus
from sps2.common.words import counted
from sps2.services.scheduler.actions import Action, ChangeUrgency, Find, Launch, Preempt, Reject
from sps2.services.scheduler.core_state import CoreState
from sps2.services.scheduler.costs import Costs
from sps2.services.scheduler.decisions import Assign, Decision, Hold, LookUp, Refuse, Start, Urge
from sps2.services.scheduler.events import (
    Assigned,
    Decoded,
    Ended,
    Event,
    Found,
    Granted,
    Grew,
    Joined,
    Lost,
    Parted,
    Prefilled,
    Progressed,
    Returned,
    RoomSeen,
    Shareable,
    Starved,
    Submitted,
    Tick,
)
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.plan import Plan, Work
from sps2.services.scheduler.request import Request, gives_way, held_back_by
from sps2.services.scheduler.rules import broken_rule
from sps2.services.scheduler.unreachable import APART_S
from sps2.services.scheduler.view import Forecast, Planner, View, too_late

log = logging.getLogger(__name__)

CHANGES = Joined | Lost | Parted | Assigned | RoomSeen | Returned | Prefilled | Shareable | Ended
"""Events after which requests that wait may start."""
SHARD_CHANGES = Joined | Lost | Parted | Assigned | Returned | Prefilled | Ended
"""Those after which requests that wait for shards may start."""


class Policy(Planner, Protocol):
    """Decides when and where requests run."""

    def decide(self, view: View) -> Iterable[Decision]:
        """What to do now; called after every event.

        Each decision is carried out as soon as it is yielded, and `view` shows its effect. A policy
        keeps nothing between events, has no clock and does no I/O, so that a replay decides alike.
        """
        ...


class Core:
    """What is known of requests and shards, and what a policy decides about them.

    The policy decides after every event. The core carries out its decisions unless they break a
    rule (`rules.py`), so that a policy can be unfair but cannot corrupt anything. A request whose
    plan breaks a rule, or at which the policy fails, ends with an error.

    A request that returns goes back to the head of the queue with its epoch counted up. One that
    waits for absent shards fails after `patience_s` seconds.
    """

    def __init__(
        self, policy: Policy, fleet: Fleet, max_queue: int, patience_s: float = 60.0
    ) -> None:
        self.fleet = fleet
        self.broken_rules = 0
        """How many decisions of the policy were not carried out."""
        self.preemptions = 0
        """How many requests gave their pages up to others."""
        self.costs = Costs()
        self.policy = policy
        self.observe: Callable[[Decision, View], None] = lambda decision, view: None
        """Called with each decision before it is carried out."""
        self._max_queue = max_queue
        self._patience_s = patience_s
        self._requests: dict[str, Request] = {}
        self._queue: deque[str] = deque()
        self._prefilling: dict[str, Request] = {}
        """Requests whose prompt is computed, or about to be."""
        self._turns: dict[str, float] = {}
        """When the last request of each caller that has requests was launched."""
        self._present = Counter[str]()
        """How many requests each caller has."""
        self._progressed: list[Request] = []
        """Prefills that have progressed since the policy last decided."""

    def state(self) -> CoreState:
        """A view of all that it knows, to be encoded before the next event."""
        return CoreState(
            tuple(self._requests.values()),
            tuple(self._queue),
            tuple(self._prefilling),
            self._turns,
            self.fleet.state(),
            self.costs.factors,
            self.costs.tbt_s,
            self.costs.answers,
        )

    def restore(self, state: CoreState) -> None:
        """Take over a state, instead of its own."""
        self.fleet = Fleet.restored(state.fleet)
        self.costs = Costs(state.factors, state.tbt_s, state.answers)
        self._requests = {request.id: request for request in state.requests}
        self._queue = deque(state.queue)
        self._prefilling = {id: self._requests[id] for id in state.prefilling}
        self._turns = state.turns
        self._present = Counter(request.work.caller for request in state.requests)

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Apply one event; the caller carries out the returned actions in their order."""
        self.fleet.reunite(now_s)
        self.fleet.changes += isinstance(event, CHANGES)
        self.fleet.shard_changes += isinstance(event, SHARD_CHANGES)
        match event:
            case Joined(shard):
                self.fleet.join(shard)
            case Lost(shard_id, peer):
                self.fleet.lose(shard_id, peer)
            case Parted(one, other):
                self.fleet.part(one, other, now_s + APART_S)
            case Assigned(shard_id, duty):
                self.fleet.assign(shard_id, duty)
            case RoomSeen(room):
                self.fleet.room = room
            case Submitted(work):
                if len(self._queue) >= self._max_queue:
                    waiting = counted(len(self._queue), "request")
                    error = Refused(f"the queue is full ({waiting} waiting); retry later")
                    return [Reject(work.request, error)]
                self._requests[work.request] = Request(work, now_s)
                self._present[work.caller] += 1
                self._turns.setdefault(work.caller, 0.0)
                self._enqueue(work.request)
            case Found(id, cached):
                if request := self._requests.get(id):
                    request.cached, request.is_finding, request.held_at = cached, False, -1
            case Granted(id, room):
                self.fleet.settle(id)
                self.fleet.room = room
                self._requests[id].stage = "prefill"
            case Progressed(id, tokens):
                self._requests[id].computed = tokens
                self._progressed.append(self._requests[id])
            case Returned(id, rest_s):
                self._leave_shards(self._requests[id])
                self._requests[id].return_to_queue(now_s, rest_s)
                self._queue.appendleft(id)
            case Starved(id, pages):
                return [*self._starve(self._requests[id], pages), *self._decide(now_s)]
            case Grew(id, room):
                self._requests[id].has_grown = True
                self.fleet.settle(id)
                self.fleet.room = room
            case Prefilled(id):
                request = self._requests[id]
                request.stage, request.prefilled_s = "transfer", now_s
                self._prefilling.pop(id, None)
                if request.plan is not None and request.is_alone:
                    predicted_s = request.plan.partition.predicted_s
                    self.costs.learn_prefill(predicted_s, now_s - request.launched_s)
                for shard_id in request.plan.group if request.plan else ():
                    if member := self.fleet.members.get(shard_id):
                        member.prefilled.pop(id, None)
            case Decoded(id, tokens):
                self.costs.learn_answer(self._requests[id].work.caller, tokens)
                since_s = self._requests[id].prefilled_s
                if since_s is not None and tokens > 1:
                    self.costs.learn_decode(tokens - 1, now_s - since_s)
            case Shareable(id):
                request = self._requests[id]
                request.is_shareable, request.stage = True, "decode"
                self._doubt_cached()
            case Ended(id):
                self._end(id)
            case Tick():
                pass
        return self._decide(now_s)

    def wakes_at(self) -> float | None:
        """The time at which the next `Tick` is due; None if none is."""
        apart_s = self.fleet.apart_until_s() if self._queue else None
        times = [] if apart_s is None else [apart_s]
        for id in self._queue:
            times += self._requests[id].wakes_at(self._patience_s)
        return min(times, default=None)

    def forecast(self, work: Work, cached: tuple[CachedRun, ...], now_s: float) -> Forecast:
        """What would become of a request that came now.

        Raises:
            Invalid: it could never run.
        """
        request = Request(work, now_s, cached=cached)
        return self._view(now_s).forecast(request, self.policy)

    def urgency(self, id: str) -> float:
        """How urgent the prefill of a launched request is."""
        return self._requests[id].urgency

    def _enqueue(self, id: str) -> None:
        """Queue a new request: one that resumes an answer before all that have none yet."""
        if not self._requests[id].work.resumes:
            self._queue.append(id)
            return
        others = [self._requests[other].work.resumes for other in self._queue]
        self._queue.insert(others.index(False) if False in others else len(others), id)

    def _decide(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        for id in self._queue:
            if self._requests[id].rests_until_s <= now_s:
                self._requests[id].rests_until_s = 0.0
        while True:
            view = self._view(now_s)
            self._progressed = []
            try:
                for decision in self.policy.decide(view):
                    self.observe(decision, view)
                    actions += self._carry_out(decision, now_s)
                break
            except Exception as error:
                log.exception("the policy failed at request %s", view.considered)
                if not self._queue:
                    break
                concerned = view.considered
                if concerned is None or concerned not in self._queue:
                    concerned = self._queue[0]
                failure = Internal(f"the scheduling policy failed: {error!r}")
                actions.append(self._reject(concerned, failure))
        for id in list(self._queue):
            if late := self._overdue(self._requests[id], now_s):
                actions.append(self._reject(id, late))
        return actions

    def _view(self, now_s: float) -> View:
        return View(
            self._requests,
            self._queue,
            self._prefilling,
            self._progressed,
            self._turns,
            self.fleet,
            self.costs,
            now_s,
        )

    def _carry_out(self, decision: Decision, now_s: float) -> list[Action]:
        if isinstance(decision, Assign):
            return self._assign(decision)
        request = self._requests.get(decision.request)
        is_queued = request is not None and request.plan is None
        if request is None or is_queued == isinstance(decision, Urge):
            return self._break_rule(decision, "there is no such request in this stage")
        match decision:
            case Start(id, plan, urgency):
                if why := broken_rule(plan, request.work, self.fleet):
                    self._break_rule(decision, why)
                    return [self._reject(id, Internal(f"the scheduling policy's plan: {why}"))]
                for other in self._queue:
                    if other == id:
                        break
                    held = self._requests[other]
                    held.overtaken += held.wait is not None and held.wait.cause == "room"
                request.since_s = request.turn_s(self._turns)
                self._turns[request.work.caller] = now_s
                self._queue.remove(id)
                self.fleet.changes += 1
                request.plan, request.urgency, request.stage = plan, urgency, "reserving"
                request.wait = request.absent_since_s = None
                self._enter_shards(request, plan, now_s)
                return [Launch(id, request.epoch, plan, urgency)]
            case LookUp(id):
                request.absent_since_s = None
                if request.is_finding:
                    return []
                request.is_finding = True
                return [Find(id, request.work.hashes)]
            case Hold(id, wait):
                request.wait, request.held_at = wait, self.fleet.changes_for(wait.cause)
                if wait.cause != "absent":
                    request.absent_since_s = None
                elif request.absent_since_s is None:
                    request.absent_since_s = now_s
            case Refuse(id, error):
                return [self._reject(id, error)]
            case Urge(id, urgency):
                if request.stage in ("reserving", "prefill") and request.plan is not None:
                    request.urgency = urgency
                    return [ChangeUrgency(id, request.epoch, request.plan, urgency)]
        return []

    def _assign(self, decision: Assign) -> list[Action]:
        try:
            self.fleet.assign(decision.shard, decision.duty)
        except Invalid as error:
            return self._break_rule(decision, str(error))
        self.fleet.changes += 1
        self.fleet.shard_changes += 1
        return []

    def _starve(self, request: Request, pages: int) -> list[Action]:
        """Keep free pages of an owner for an answer that grows; preempt a request if need be."""
        assert request.plan is not None
        owner, request.has_grown = request.plan.owner, True
        self.fleet.settle(request.id)
        self.fleet.promise(request.id, {owner: pages})
        last = gives_way(request, [other for other in self._requests.values() if other.uses(owner)])
        if last is not None:
            last.is_preempted = True
            self.preemptions += 1
        return [] if last is None else [Preempt(last.id)]

    def _break_rule(self, decision: Decision, why: str) -> list[Action]:
        self.broken_rules += 1
        log.error("the policy's %s is ignored: %s", decision, why)
        return []

    def _reject(self, id: str, error: ServiceError) -> Reject:
        self._queue.remove(id)
        self._forget_caller(self._requests.pop(id).work.caller)
        return Reject(id, error)

    def _overdue(self, request: Request, now_s: float) -> ServiceError | None:
        """The error of a queued request that has waited for too long."""
        most_s = request.work.max_ttft_s
        if most_s is not None and now_s - request.submitted_s >= most_s:
            return too_late(f"has not come for {1000 * most_s:g} ms", most_s)
        since_s, wait = request.absent_since_s, request.wait
        if wait is None or since_s is None or now_s - since_s < self._patience_s:
            return None
        missing = self.fleet.waiting_for() or "them"
        why = f"{wait.reason}, and it has waited {self._patience_s:g} s for {missing}"
        return PeerLost(self.fleet.keeping, f"{why}; retry later")

    def _enter_shards(self, request: Request, plan: Plan, now_s: float) -> None:
        self.fleet.promise(request.id, plan.takes)
        self._prefilling[request.id] = request
        request.launched_s, request.is_alone = now_s, True
        for shard_id in plan.group:
            for other in self.fleet.members[shard_id].prefilled:
                request.is_alone = self._requests[other].is_alone = False
            tokens = request.work.prompt_tokens - plan.prefix.tokens
            self.fleet.members[shard_id].prefilled[request.id] = tokens
            self.fleet.members[shard_id].given += 1
        for place in plan.placements:
            self.fleet.members[place.shard].held.add(request.id)
        self.fleet.members[plan.owner].owned.add(request.id)

    def _doubt_cached(self) -> None:
        """More pages may be cached: queued requests look them up again when it is their turn."""
        for id in self._queue:
            self._requests[id].cached = None

    def _end(self, id: str) -> None:
        request = self._requests.pop(id, None)
        if request is None:
            return
        self._leave_shards(request)
        self._forget_caller(request.work.caller)
        if request.plan is None:
            self._queue.remove(id)
        else:
            self._doubt_cached()

    def _forget_caller(self, caller: str) -> None:
        self._present[caller] -= 1
        if not self._present[caller]:
            del self._present[caller], self._turns[caller]

    def _leave_shards(self, request: Request) -> None:
        self.fleet.settle(request.id)
        self._prefilling.pop(request.id, None)
        for shard in request.plan.shards if request.plan else ():
            if member := self.fleet.members.get(shard):
                member.leave(request.id)

    def requests(self, now_s: float) -> tuple[RequestStatus, ...]:
        """The status of every request, in order of arrival."""
        return tuple(
            request.status(now_s, held_back_by(request, self._prefilled_beside(request)))
            for request in self._requests.values()
        )

    def _prefilled_beside(self, request: Request) -> list[Request]:
        """The prefills on the shards that prefill a request, itself included."""
        group = request.plan.group if request.plan else ()
        members = [member for shard in group if (member := self.fleet.members.get(shard))]
        return [self._requests[id] for member in members for id in member.prefilled]
