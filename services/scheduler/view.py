"""What a policy may read: the queue, what runs, the shards and the clock."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from typing import Protocol

from sps2.common.errors import ServiceError
from sps2.common.messages import CachedRun
from sps2.services.scheduler.cached_prefix import usable
from sps2.services.scheduler.chunks import Chunks
from sps2.services.scheduler.costs import Costs
from sps2.services.scheduler.decisions import Decision, Hold, LookUp, NextChunk, Refuse, Start
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.fleet_state import Member
from sps2.services.scheduler.lateness import too_late
from sps2.services.scheduler.placing import Ahead, Placing, idle
from sps2.services.scheduler.plan import Plan, Wait
from sps2.services.scheduler.request import Request

Considered = Start | LookUp | Hold | Refuse


class Planner(Protocol):
    """What a policy must provide for plans and predictions."""

    placing: Placing
    chunks: Chunks

    def precedes(self, view: "View", other: Request, request: Request) -> bool:
        """Whether `other`, which waits or is prefilled, is computed before `request`."""
        ...


@dataclass(frozen=True)
class Forecast:
    """What is predicted of a request.

    plan: where it would run; None if there is no room now, and `waits_for` says for what.
    queue_s: seconds in which its shards compute what precedes it. prefill_s: from then on to its
        first token. tbt_s: between two tokens; None before any answer.
    """

    plan: Plan | None
    waits_for: str
    queue_s: float
    prefill_s: float
    tbt_s: float | None


class View:
    """The state of the core while a policy decides; only for reading.

    It is live: after each decision that the policy yields, it shows what follows from it. Its queue
    is empty after events that let no request start.
    """

    def __init__(
        self,
        requests: Mapping[str, Request],
        queue: Sequence[str],
        prefilling: Mapping[str, Request],
        progressed: Sequence[Request],
        turns: Mapping[str, float],
        fleet: Fleet,
        costs: Costs,
        now_s: float,
    ) -> None:
        self._requests = requests
        self._queue = queue
        self.prefilling = prefilling
        """Requests whose prompt is computed, or about to be, by id."""
        self.progressed = progressed
        """Those of them that have computed more since the policy last decided."""
        self._turns = turns
        self._next: dict[str, Request] = {}
        self._cached_tokens: dict[tuple[str, int], int] = {}
        """By request and `Fleet.shard_changes`."""
        self.fleet = fleet
        self.costs = costs
        self.now_s = now_s
        self.considered: str | None = None
        """The request that was considered last."""

    def waiting(self) -> list[Request]:
        """Queued requests that do not rest: those that resume an answer, then by priority."""
        queued = [self._requests[request] for request in self._queue]
        ready = [request for request in queued if request.rests_until_s <= self.now_s]
        return sorted(ready, key=lambda each: (not each.work.resumes, -each.work.priority))

    def get(self, request: str) -> Request | None:
        """A request that has not ended."""
        return self._requests.get(request)

    def between_chunks(self) -> list[Request]:
        """Requests whose next chunk may begin, in the order in which they were launched."""
        return [request for request in self.prefilling.values() if request.awaits_chunk]

    def since_s(self, request: Request) -> float:
        """Since when a request waits, or waited until it was launched; see `Request.turn_s`."""
        return request.since_s if request.plan is not None else request.turn_s(self._turns)

    def is_next(self, request: Request) -> bool:
        """Whether no request of its caller has waited longer; true of one that was launched."""
        if request.plan is not None:
            return True
        if not self._next:
            for other in self.waiting():
                first = self._next.setdefault(other.work.caller, other)
                if other.submitted_s < first.submitted_s:
                    self._next[other.work.caller] = other
        return self._next.get(request.work.caller, request) is request

    def in_line(self, urgency: Callable[[Request, float], float]) -> Iterator[Request]:
        """The requests that wait, in the order in which they are to start.

        Of each caller the most urgent comes first; of these heads of the lines, the most urgent.

        Args:
            urgency: of a request that waits since a time; the larger, the sooner.
        """
        if not self._queue:
            return
        lines: dict[tuple[bool, str], list[Request]] = {}
        for request in self.waiting():
            name = (not request.work.resumes, request.work.caller)
            lines.setdefault(name, []).append(request)
        heads = []
        for number, ((late, _), line) in enumerate(lines.items()):
            line.sort(key=lambda each: urgency(each, each.submitted_s))
            heads.append((late, -urgency(line[-1], self.since_s(line[-1])), number, line))
        heapify(heads)
        while heads:
            late, _, number, line = heads[0]
            yield line.pop()
            if line:
                since_s = self.now_s if len(heads) > 1 else self.since_s(line[-1])
                heapreplace(heads, (late, -urgency(line[-1], since_s), number, line))
            else:
                heappop(heads)

    def launched_since(self, changes: int) -> Iterator[Plan]:
        """The plans of requests that were launched after so many `Fleet.changes` and run."""
        for request in self._requests.values():
            if request.plan is not None and request.launched_at > changes:
                yield request.plan

    def cached(self, request: str) -> tuple[CachedRun, ...]:
        """The cached pages of a prompt, as far as they are known."""
        return self._requests[request].cached or ()

    def cached_tokens(self, request: Request) -> int:
        """Tokens of a prompt that are known to be cached."""
        if request.plan is not None:
            return request.plan.prefix.tokens
        if not request.cached:
            return 0
        key = request.id, self.fleet.shard_changes
        if key not in self._cached_tokens:
            found = usable(request.cached, request.work.prompt_tokens, self.fleet)
            self._cached_tokens[key] = found.tokens
        return self._cached_tokens[key]

    def consider(self, request: Request, planner: Planner, ahead: Ahead = idle) -> Considered:
        """The decision about a request: to start it if there are shards for it now, or why not.

        It is not planned again as long as nothing has changed since it was held.
        """
        self.considered = request.id
        wait, work = request.wait, request.work
        is_same = wait and request.held_at == self.fleet.changes_for(wait.cause)
        if wait and is_same and wait.cause != "turn" and not work.max_ttft_s:
            return Hold(request.id, wait)
        try:
            self._check_ttft(request, planner)
            if work.hashes and any(map(request.gains_from, self._requests.values())):
                return Hold(request.id, Wait("prefix"))
            if not request.is_known and (wait is None or wait.cause != "absent"):
                return LookUp(request.id)
            plan = planner.placing.plan(work, request.cached or (), self.fleet, ahead)
        except ServiceError as error:
            return Refuse(request.id, error)
        if isinstance(plan, Wait) and plan.cause == "absent":
            return Hold(request.id, plan)
        if not request.is_known:
            return LookUp(request.id)
        if isinstance(plan, Wait):
            return Hold(request.id, plan)
        return Start(request.id, planner.chunks.first(plan, work, self.fleet))

    def proceed(self, request: Request, planner: Planner, ahead: Ahead = idle) -> NextChunk | Hold:
        """The decision about a request between two chunks: to go on if there are shards for it."""
        self.considered = request.id
        assert request.plan is not None
        wait = request.wait
        if wait is not None and request.held_at == self.fleet.changes_for(wait.cause):
            return Hold(request.id, wait)
        plan = planner.chunks.following(request.plan, request.work, self.fleet, ahead)
        if isinstance(plan, Wait):
            return Hold(request.id, plan)
        return NextChunk(request.id, plan, request.urgency)

    def forecast(self, request: Request, planner: Planner) -> Forecast:
        """What is predicted of a request that waits, or of one that could come now.

        Raises:
            Invalid: it can never run.
        """
        shards = [member.shard.id for member in self.fleet.prefillers()]
        before = dict.fromkeys(shards, 0.0)
        for other in self.prefilling.values():
            if other.plan is not None and planner.precedes(self, other, request):
                for shard in before.keys() & {*other.plan.group}:  # some may be lost
                    before[shard] += self._left_s(other, other.plan)
        for other in self.waiting():
            if other.id != request.id and planner.precedes(self, other, request):
                theirs = self._planned(other, planner, before)
                if isinstance(theirs, Plan):
                    for shard in theirs.group:
                        before[shard] += self._left_s(other, theirs)
        plan = self._planned(request, planner, before)
        if isinstance(plan, Wait):
            return Forecast(None, plan.in_words, 0.0, 0.0, self.costs.tbt_s)
        queue_s = max(before[shard] for shard in plan.group)
        return Forecast(plan, "", queue_s, self._left_s(request, plan), self.costs.tbt_s)

    def _planned(
        self, request: Request, planner: Planner, before: Mapping[str, float]
    ) -> Plan | Wait:
        cached = request.cached or ()

        def ahead(member: Member) -> float:
            return before[member.shard.id]

        return planner.placing.plan(request.work, cached, self.fleet, ahead)

    def _left_s(self, request: Request, plan: Plan) -> float:
        """Seconds until the first token, with the shards of the plan for itself."""
        tokens = request.work.prompt_tokens - plan.chunk.start
        computed = max(0, request.computed - (plan.chunk.start - plan.prefix.tokens))
        return max(0, tokens - computed) / tokens * self.costs.first_token_s(plan.predicted_s)

    def _check_ttft(self, request: Request, planner: Planner) -> None:
        """Raises Refused if the first token is predicted to come too late for the caller."""
        most_s = request.work.max_ttft_s
        if most_s is None:
            return
        found = self.forecast(request, planner)
        ttft_s = self.now_s - request.submitted_s + found.queue_s + found.prefill_s
        if ttft_s > most_s:
            raise too_late(f"is predicted after {1000 * ttft_s:.0f} ms", most_s, found.queue_s)


class Policy(Planner, Protocol):
    """Decides when and where requests run."""

    def decide(self, view: View) -> Iterable[Decision]:
        """What to do now; called after every event.

        Each decision is carried out as soon as it is yielded, and `view` shows its effect. A policy
        keeps nothing between events, has no clock and does no I/O, so that a replay decides alike.
        """
        ...
