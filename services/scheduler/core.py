"""The scheduler's bookkeeping as a pure state machine: events and a clock in, actions out."""

import logging
from collections import deque
from collections.abc import Callable

from sps2.common.errors import Internal, Invalid, Refused, ServiceError
from sps2.common.messages import CachedRun, RequestStatus
from sps2.common.words import counted
from sps2.services.scheduler import occupancy
from sps2.services.scheduler.actions import (
    Action,
    ChangeUrgency,
    Fail,
    Find,
    Launch,
    Proceed,
    Reject,
)
from sps2.services.scheduler.callers import Callers
from sps2.services.scheduler.core_state import CoreState
from sps2.services.scheduler.costs import Costs
from sps2.services.scheduler.decisions import (
    Assign,
    Decision,
    Hold,
    LookUp,
    NextChunk,
    Refuse,
    Start,
    Urge,
)
from sps2.services.scheduler.events import (
    CHANGES,
    SHARD_CHANGES,
    STARTS_NONE,
    TEACHES,
    Assigned,
    Chunked,
    Computed,
    Decoded,
    Employed,
    Ended,
    Event,
    Found,
    Granted,
    Grew,
    HandedOver,
    Joined,
    Lost,
    Measured,
    Parted,
    Prefilled,
    Progressed,
    Retired,
    Returned,
    RoomSeen,
    Shareable,
    Starved,
    Submitted,
)
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.lateness import overdue
from sps2.services.scheduler.learning import learn, learn_measures
from sps2.services.scheduler.left_out import note
from sps2.services.scheduler.plan import Work
from sps2.services.scheduler.preempting import preempt, starve, to_move
from sps2.services.scheduler.probing import next_at, next_probe
from sps2.services.scheduler.request import Request
from sps2.services.scheduler.rules import broken_rule
from sps2.services.scheduler.unreachable import APART_S
from sps2.services.scheduler.view import Forecast, Policy, View

log = logging.getLogger(__name__)


class Core:
    """What is known of requests and shards, and what a policy decides about them.

    The policy decides after every event. The core carries out its decisions unless they break a
    rule (`rules.py`), so that a policy can be unfair but cannot corrupt anything. A request whose
    plan breaks a rule, or at which the policy fails, ends with an error.

    A request that returns goes back to the head of the queue, with its epoch counted up. One that
    waits for absent shards fails after `patience_s`.
    """

    def __init__(
        self, policy: Policy, fleet: Fleet, max_queue: int, patience_s: float = 60.0
    ) -> None:
        self.fleet = fleet
        self.broken_rules = 0
        """Decisions of the policy that were not carried out."""
        self.preemptions = self.handovers = 0
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
        self._callers = Callers()
        self._progressed: list[Request] = []
        """Prefills that have progressed since the policy last decided."""

    def state(self) -> CoreState:
        """A view of all that it knows, to be encoded before the next event."""
        return CoreState(
            tuple(self._requests.values()),
            tuple(self._queue),
            tuple(self._prefilling),
            self._callers.turns,
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
        self._callers = Callers(state.turns, (each.work.caller for each in state.requests))
        self.policy.placing.adapt(self.fleet)

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Apply one event; the caller carries out the returned actions in their order."""
        return [*self._apply(event, now_s), *next_probe(self.fleet, event, now_s)]

    def _apply(self, event: Event, now_s: float) -> list[Action]:
        self.fleet.reunite(now_s)
        self.fleet.changes += isinstance(event, CHANGES)
        self.fleet.shard_changes += isinstance(event, SHARD_CHANGES)
        stopped: list[Request] = []
        match event:
            case Joined(shard, draining):
                self.fleet.join(shard, draining)
            case Lost(shard_id, peer):
                self.fleet.lose(shard_id, peer)
            case Parted(one, other):
                self.fleet.part(one, other, now_s + APART_S)
            case Assigned(shard_id, duty):
                self.fleet.assign(shard_id, duty)
            case Retired(shard_id):
                self.fleet.retire(shard_id)
            case Employed(shard_id):
                self.fleet.employ(shard_id)
            case HandedOver(shard_id):
                stopped = to_move(shard_id, self._requests)
                self.handovers += len(stopped)
            case RoomSeen(room):
                self.fleet.room = room
            case Submitted(work):
                if len(self._queue) >= self._max_queue and not work.resumes:
                    waiting = counted(len(self._queue), "request")
                    error = Refused(f"the queue is full ({waiting} waiting); retry later")
                    return [Reject(work.request, error)]
                self._requests[work.request] = Request(work, now_s)
                self._callers.came(work.caller)
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
            case Computed(id):
                learn(self.fleet, self._requests.get(id), event, now_s)
            case Measured():
                learn_measures(self.fleet, event, now_s)
            case Chunked(id):
                request = self._requests[id]
                request.awaits_chunk = True
                if request.plan is not None:
                    request.computed = request.plan.chunk.stop - request.plan.prefix.tokens
                    occupancy.leave_group(self.fleet, request)
            case Returned(id, rest_s):
                self._leave(self._requests[id])
                self._requests[id].return_to_queue(now_s, rest_s)
                self._queue.appendleft(id)
            case Starved(id, pages):
                stopped = starve(self._requests[id], pages, self._requests, self.fleet)
                self.preemptions += len(stopped)
            case Grew(id, room):
                self._requests[id].has_grown = True
                self.fleet.settle(id)
                self.fleet.room = room
            case Prefilled(id):
                request = self._requests[id]
                request.stage, request.prefilled_s = "transfer", now_s
                self._prefilling.pop(id, None)
                if (plan := request.plan) is not None:
                    if request.is_alone and plan.is_first:
                        self.costs.learn_prefill(plan.predicted_s, now_s - request.launched_s)
                    occupancy.leave_group(self.fleet, request)
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
        if isinstance(event, TEACHES):
            self.policy.placing.adapt(self.fleet)
        return [*map(preempt, stopped), *self._decide(now_s, not isinstance(event, STARTS_NONE))]

    def wakes_at(self) -> float | None:
        """The time at which the next `Tick` is due; None if none is."""
        apart_s = self.fleet.apart_until_s() if self._queue else None
        times = [at_s for at_s in (apart_s, next_at(self.fleet)) if at_s is not None]
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

    def needing(self, shard: str) -> tuple[str, ...]:
        """The requests that cannot go on without a shard."""
        return tuple(id for id, request in self._requests.items() if request.needs(shard))

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

    def _decide(self, now_s: float, may_start: bool = True) -> list[Action]:
        actions: list[Action] = []
        for id in self._queue:
            if self._requests[id].rests_until_s <= now_s:
                self._requests[id].rests_until_s = 0.0
        while True:
            view = self._view(now_s, may_start)
            self._progressed = []
            try:
                for decision in self.policy.decide(view):
                    self.observe(decision, view)
                    actions += self._carry_out(decision, now_s)
                break
            except Exception as error:
                log.exception("the policy failed at request %s", view.considered)
                failure = Internal(f"the scheduling policy failed: {error!r}")
                if (between := view.considered) in [each.id for each in view.between_chunks()]:
                    assert between is not None
                    actions.append(self._fail(self._requests[between], failure))
                    continue
                if not self._queue:
                    break
                blamed = next((id for id in self._queue if id == view.considered), self._queue[0])
                actions.append(self._reject(blamed, failure))
        for id in list(self._queue):
            if late := overdue(self._requests[id], self.fleet, self._patience_s, now_s):
                actions.append(self._reject(id, late))
        return actions

    def _view(self, now_s: float, may_start: bool = True) -> View:
        return View(
            self._requests,
            self._queue if may_start else (),
            self._prefilling,
            self._progressed,
            self._callers.turns,
            self.fleet,
            self.costs,
            now_s,
        )

    def _carry_out(self, decision: Decision, now_s: float) -> list[Action]:
        if isinstance(decision, Assign):
            return self._assign(decision)
        request = self._requests.get(decision.request)
        if request is None or not isinstance(decision, request.open_to):
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
                request.since_s = request.turn_s(self._callers.turns)
                self._callers.turns[request.work.caller] = now_s
                self._queue.remove(id)
                self.fleet.changes += 1
                request.launch(plan, urgency, now_s, self.fleet.changes)
                self._prefilling[id] = request
                note(plan.group, self.fleet)
                occupancy.enter(self.fleet, request, self._requests)
                return [Launch(id, request.epoch, plan, urgency)]
            case NextChunk(id, plan, urgency):
                if why := broken_rule(plan, request.work, self.fleet, request.plan):
                    self._break_rule(decision, why)
                    return [self._fail(request, Internal(f"the scheduling policy's chunk: {why}"))]
                request.plan, request.urgency = plan, urgency
                request.wait, request.awaits_chunk = None, False
                occupancy.enter_group(self.fleet, request, self._requests)
                return [Proceed(id, plan, urgency)]
            case LookUp(id):
                request.absent_since_s = None
                if request.is_finding:
                    return []
                request.is_finding = True
                return [Find(id, request.work.hashes)]
            case Hold(id, wait, keeps_room):
                request.wait, request.held_at = wait, self.fleet.changes_for(wait.cause)
                request.keep_room(keeps_room, self.fleet.changes)
                if wait.cause != "absent":
                    request.absent_since_s = None
                elif request.absent_since_s is None:
                    request.absent_since_s = now_s
            case Refuse(id, error):
                return [self._reject(id, error)]
            case Urge(id, urgency):
                request.urgency = urgency
                computes = request.stage in ("reserving", "prefill") and not request.awaits_chunk
                if computes and request.plan is not None:
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

    def _break_rule(self, decision: Decision, why: str) -> list[Action]:
        self.broken_rules += 1
        log.error("the policy's %s is ignored: %s", decision, why)
        return []

    def _reject(self, id: str, error: ServiceError) -> Reject:
        self._queue.remove(id)
        self._callers.left(self._requests.pop(id).work.caller)
        return Reject(id, error)

    def _fail(self, request: Request, error: ServiceError) -> Fail:
        """End a request between two chunks; `Ended` follows."""
        request.awaits_chunk = False
        return Fail(request.id, error)

    def _leave(self, request: Request) -> None:
        computes = self._prefilling.pop(request.id, None) is not None
        self.fleet.shard_changes += computes or self.fleet.prefilling == "mixed"
        occupancy.leave(self.fleet, request)

    def _doubt_cached(self) -> None:
        """More pages may be cached: queued requests look them up again when it is their turn."""
        for id in self._queue:
            self._requests[id].cached = None

    def _end(self, id: str) -> None:
        request = self._requests.pop(id, None)
        if request is None:
            return
        self._leave(request)
        self._callers.left(request.work.caller)
        if request.plan is None:
            self._queue.remove(id)
        else:
            self._doubt_cached()

    def requests(self, now_s: float) -> tuple[RequestStatus, ...]:
        """The status of every request, in order of arrival."""
        return tuple(
            occupancy.status(self.fleet, request, self._requests, now_s)
            for request in self._requests.values()
        )
