"""Discrete-event simulation of a cluster, with the scheduler's core and KV directory that serve.

Only what shards do is modelled: `Machines` says how long it takes. Everything that is decided is
decided by the code of `services/scheduler` and `services/kvdir`, in virtual time.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from sps2.cli.simulator.arrivals import Arrivals
from sps2.cli.simulator.clock import Clock, Timer
from sps2.cli.simulator.costs import Costs
from sps2.cli.simulator.decoding import step_times
from sps2.cli.simulator.job import Job
from sps2.cli.simulator.machines import Machines
from sps2.cli.simulator.outcomes import Activity, Delay, Outcome, Run
from sps2.cli.simulator.setup import Setup
from sps2.cli.simulator.shard_history import ShardHistory
from sps2.cli.workload.requests import Turn, Workload
from sps2.common.errors import Invalid
from sps2.services.kvdir.directory import Directory
from sps2.services.scheduler.actions import (
    Action,
    ChangeUrgency,
    Fail,
    Find,
    Launch,
    Preempt,
    Proceed,
    Reject,
)
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.decisions import Decision, Hold
from sps2.services.scheduler.events import (
    Ended,
    Event,
    Found,
    Joined,
    Lost,
    Returned,
    RoomSeen,
    Submitted,
    Tick,
)
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.plan import Work
from sps2.services.scheduler.policies import POLICIES
from sps2.services.scheduler.service import (
    BACKOFF_S,
    LONGEST_BACKOFF_S,
    REPLANS,
    SHORTEST_TICK_S,
)
from sps2.services.scheduler.view import View

LOSSES = 3
"""How often an answer resumes after it lost a shard."""
DETECTED_S = 1.0
"""How long after its loss a shard counts as lost."""


class Loss(NamedTuple):
    """A shard ends at a time, and joins again some seconds later."""

    shard: str
    at_s: float
    for_s: float


@dataclass
class _Asked:
    """A turn under way."""

    turn: Turn
    outcome: Outcome
    hashes: tuple[bytes, ...]
    job: Job | None = None
    answered: int = 0
    replans: int = 0
    refusals: int = 0
    resumed: int = 0
    losses: int = 0
    waits: tuple[str, float] | None = None
    """Why it waits now, and since when."""


class Simulation:
    """One run of a workload on a cluster.

    Args:
        losses: shards that end meanwhile.
    """

    def __init__(
        self,
        setup: Setup,
        losses: Sequence[Loss] = (),
    ) -> None:
        config = setup.config
        self._setup = setup
        self._losses = losses
        self._clock = Clock()
        shards = [*setup.shards()]
        self.costs = Costs(setup.model, setup.itemsize)
        self.machines = Machines(
            self._clock,
            setup.profile,
            [shard.id for shard in shards],
            self.costs.q_bytes + self.costs.state_bytes,
        )
        self.directory = Directory()
        self.growth_tokens = config.kv.growth_tokens
        self.pass_tokens = config.scheduler.pass_tokens
        self._history = ShardHistory(self._clock, self.machines.units)
        self.activities = self._history.activities
        schemes = setup.schemes()
        self.core = Core(
            POLICIES[config.scheduler.policy](config.scheduler, schemes),
            Fleet(config.prefill, config.decode, config.mixed, config.scheduler.duties),
            config.scheduler.max_queue,
            config.scheduler.patience_s,
        )
        self.core.observe = self._note_wait
        self.handles = self.core.handle
        """Takes events; an event log may stand between."""
        self._events: deque[Event] = deque()
        self._tick: Timer | None = None
        self._asked: dict[str, _Asked] = {}
        """By the name of the request that the core knows."""
        self._outcomes: list[Outcome] = []
        self._queue: list[tuple[float, int]] = []
        self._waiting = 0
        self._ended = 0
        self._unsent = 0
        """Turns of sessions of which an earlier turn failed."""
        self._lives = dict.fromkeys(self.machines.units, 0)
        for shard in shards:
            self._join(shard.id)

    def run(
        self,
        workload: Workload,
        alone: Callable[[int], float] = lambda tokens: 0.0,
        report: Callable[[int], None] = lambda ended: None,
    ) -> Run:
        """Run a workload to its end.

        Args:
            alone: the TTFT of a prompt of some length on an idle cluster.
            report: called now and then with how many requests have ended.
        """
        self._block_tokens = workload.block_tokens
        self._arrivals = Arrivals(self._clock, workload, self._submit)
        for loss in self._losses:
            if loss.shard not in self._lives:
                shards = ", ".join(self._lives)
                raise Invalid(f"there is no shard {loss.shard} to lose; there are {shards}")
            self._clock.call_at(loss.at_s, partial(self.machines.kill, loss.shard))
            self._clock.call_at(loss.at_s + DETECTED_S, partial(self._lose, loss))
        told = 0
        while self._ended + self._unsent < len(workload.turns) and self._clock.step():
            if self._ended >= told + 100:
                told = self._ended
                report(told)
        report(self._ended)
        for outcome in self._outcomes:
            outcome.alone_s = alone(outcome.prompt_tokens)
        config, setup = self._setup.config, self._setup
        first = [turn.at_s for turn in workload.turns]
        span_s = max(first, default=0.0) - min(first, default=0.0)
        return Run(
            config.scheduler.policy,
            setup.summary,
            tuple(self.machines.units),
            workload.name,
            setup.profile.model,
            setup.profile.name,
            len(first) / span_s if span_s else 0.0,
            setup.profile.margin,
            0,
            self._outcomes,
            self.activities,
            self._queue,
            step_times(self.machines.steps),
            max((each.ended_s for each in self._outcomes if each.ended_s), default=0.0),
            self.core.broken_rules,
            self.core.preemptions,
        )

    def handle(self, event: Event) -> None:
        """Pass an event to the core, and do what it says."""
        self._events.append(event)
        if len(self._events) > 1:
            return  # the call that handles the first one handles this one too
        while self._events:
            now_s = self._clock.now_s
            for action in self.handles(self._events[0], now_s):
                self._carry_out(action)
            self._events.popleft()
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        if (at_s := self.core.wakes_at()) is not None:
            at_s = max(at_s, self._clock.now_s + SHORTEST_TICK_S)
            self._tick = self._clock.call_at(at_s, lambda: self.handle(Tick()))

    def refused(self, job: Job) -> None:
        asked = self._asked[job.request.request]
        rest_s = min(LONGEST_BACKOFF_S, BACKOFF_S * 2**asked.refusals)
        asked.refusals += 1
        self._return(asked, job, rest_s)

    def finished(self, job: Job) -> None:
        self._end(self._asked[job.request.request], job, "")

    def _carry_out(self, action: Action) -> None:
        match action:
            case Find(id, hashes):
                self.handle(Found(id, self.directory.find(hashes)))
            case Launch(id, epoch, plan, urgency):
                asked = self._asked[id]
                self._note_waits_over(asked)
                self._count_waiting(-1)
                if asked.outcome.launched_s is None:
                    asked.outcome.launched_s = self._clock.now_s
                tokens = asked.turn.answer_tokens - asked.answered
                work = self._work(id, asked)
                asked.job = Job(self, work, epoch, plan, urgency, tokens, asked.outcome)
                asked.job.start()
                self._history.watch()
            case Proceed(id, plan, urgency):
                if (job := self._asked[id].job) is not None:
                    job.proceed(plan, urgency)
            case ChangeUrgency(id, _, _, urgency):
                if (job := self._asked[id].job) is not None:
                    job.urge(urgency)
            case Preempt(id):
                asked = self._asked[id]
                if (job := asked.job) is not None:
                    if job.is_answering:
                        self._resume(asked, job)
                    else:
                        self._return(asked, job, BACKOFF_S)
            case Fail(id, error):
                asked = self._asked[id]
                assert asked.job is not None
                self._end(asked, asked.job, str(error))
            case Reject(id, error):
                asked = self._asked.pop(id)
                self._count_waiting(-1)
                self._note_waits_over(asked)
                self._close(asked, str(error))

    def _submit(self, turn: Turn) -> None:
        id = f"r{len(self._outcomes)}"
        outcome = Outcome(
            id,
            turn.session,
            self._clock.now_s,
            turn.prompt_tokens,
            turn.answer_tokens,
            delays=[],
            sent_bytes={},
        )
        self._outcomes.append(outcome)
        asked = self._asked[id] = _Asked(turn, outcome, self._hashes(turn))
        self._count_waiting(1)
        self.handle(Submitted(self._work(id, asked)))

    def _work(self, id: str, asked: _Asked, room_tokens: int = 0) -> Work:
        turn, growth = asked.turn, self.growth_tokens
        return Work(
            id,
            turn.prompt_tokens + asked.answered,
            turn.answer_tokens - asked.answered,
            hashes=asked.hashes,
            resumes=asked.answered > 0,
            caller=turn.caller,
            reserved_tokens=max(growth, room_tokens) if growth else None,
        )

    def _hashes(self, turn: Turn) -> tuple[bytes, ...]:
        """The hashes of the prompt's full pages."""
        kv = self._setup.config.kv
        if not (kv.prefix_cache and turn.blocks):
            return ()
        size, block = kv.page_tokens, self._block_tokens
        return tuple(
            turn.blocks[(stop - 1) // block].to_bytes(8, "little", signed=True)
            + (stop % block).to_bytes(8, "little")
            for stop in range(size, turn.prompt_tokens + 1, size)
        )

    def _return(self, asked: _Asked, job: Job, rest_s: float | None) -> None:
        """Have a request planned anew."""
        id = job.request.request
        job.stop()
        asked.job = None
        asked.outcome.epochs += 1
        self._count_waiting(1)
        self.handle(Returned(id, rest_s))
        self._see_room()

    def _resume(self, asked: _Asked, job: Job) -> None:
        """Submit the answer so far with the prompt, as the gateway does."""
        id = job.request.request
        job.stop()
        asked.answered += job.decoded
        asked.job = None
        asked.resumed += 1
        asked.outcome.epochs += 1
        del self._asked[id]
        self.handle(Ended(id))
        self._see_room()
        self._count_waiting(1)
        name = f"{asked.outcome.request}.{asked.resumed}"
        self._asked[name] = asked
        self.handle(Submitted(self._work(name, asked, 2 * job.decoded)))

    def _end(self, asked: _Asked, job: Job, error: str) -> None:
        id = job.request.request
        job.stop()
        del self._asked[id]
        self._close(asked, error)
        self.handle(Ended(id))
        self._see_room()

    def _close(self, asked: _Asked, error: str) -> None:
        asked.outcome.error = error
        asked.outcome.ended_s = self._clock.now_s
        self._ended += 1
        if error:
            self._unsent += self._arrivals.failed(asked.turn)
        else:
            self._arrivals.answered(asked.turn)

    def _see_room(self) -> None:
        self.handle(RoomSeen(self.directory.room()))

    def _join(self, id: str) -> None:
        role, _, index = id.partition("-")
        shard = self._setup.shard(role, int(index), self._lives[id])  # type: ignore[arg-type]
        self.handle(Joined(shard))
        if shard.pages:
            name = shard.peer.name
            self.directory.announce(id, name, shard.pages, shard.page_tokens, ())
            self._see_room()

    def _lose(self, loss: Loss) -> None:
        """A shard has gone: what ran on it is planned anew, or resumes."""
        id = loss.shard
        name = f"{id}/{self._lives[id]}"
        self.activities.append(Activity(id, "lost", loss.at_s, loss.at_s + loss.for_s))
        self.handle(Lost(id, name))
        self.directory.withdraw(id, name)
        for asked in [*self._asked.values()]:
            job = asked.job
            if job is None or id not in job.plan.shards:
                continue
            asked.losses += 1
            if job.is_answering and asked.losses <= LOSSES:
                self._resume(asked, job)
            elif not job.is_answering and asked.replans < REPLANS:
                asked.replans += 1
                self._return(asked, job, None)
            else:
                self._end(asked, job, f"{id} was lost")
        self._lives[id] += 1
        self._clock.call_at(loss.at_s + loss.for_s, partial(self._come_back, id))

    def _come_back(self, id: str) -> None:
        self.machines.revive(id)
        self._join(id)

    def _count_waiting(self, change: int) -> None:
        self._waiting += change
        self._queue.append((self._clock.now_s, self._waiting))

    def _note_wait(self, decision: Decision, view: View) -> None:
        if isinstance(decision, Hold) and (asked := self._asked.get(decision.request)):
            cause = decision.wait.cause
            if asked.waits is None or asked.waits[0] != cause:
                self._note_waits_over(asked)
                asked.waits = cause, view.now_s

    def _note_waits_over(self, asked: _Asked) -> None:
        if asked.waits is not None:
            cause, since_s = asked.waits
            if self._clock.now_s > since_s:
                asked.outcome.delays.append(Delay(cause, since_s, self._clock.now_s))
            asked.waits = None
