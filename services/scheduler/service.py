"""The scheduler on the bus: turns messages into events and carries out the core's actions."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress

from sps2.common.bus.peer import Peer
from sps2.common.bus.telemetry import Publisher, RequestEvent
from sps2.common.config import Cluster
from sps2.common.errors import Invalid, PeerLost, Preempted, Refused, ServiceError
from sps2.common.messages import (
    CachedRun,
    Displaced,
    Done,
    Finished,
    FirstToken,
    FleetStatus,
    Lookup,
    Placed,
    Predict,
    Predicted,
    Progress,
    Rates,
    Register,
    SetDuty,
    Shard,
    ShowFleet,
    Submit,
    Watch,
)
from sps2.common.page_hashes import PromptHashes
from sps2.common.tracing import FORGETFUL, Recorder, Trail
from sps2.services.scheduler.actions import (
    ChangeUrgency,
    Fail,
    Find,
    Launch,
    Preempt,
    Probe,
    Proceed,
    Reject,
)
from sps2.services.scheduler.contacts import Contacts
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.errands import Errands
from sps2.services.scheduler.event_log import EventLog
from sps2.services.scheduler.events import (
    Assigned,
    Decoded,
    Ended,
    Event,
    Joined,
    Lost,
    Returned,
    RoomSeen,
    Submitted,
    Tick,
)
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.fleet_status import statuses
from sps2.services.scheduler.job import Job
from sps2.services.scheduler.job_listener import Listening
from sps2.services.scheduler.lookups import FIND_S, Lookups
from sps2.services.scheduler.measuring import measuring_for
from sps2.services.scheduler.members import Members
from sps2.services.scheduler.pins import Pins
from sps2.services.scheduler.plan import Plan, Work
from sps2.services.scheduler.policies import POLICIES
from sps2.services.scheduler.retirement import Retirement
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.submissions import Submissions
from sps2.services.tasks import emitted_by

log = logging.getLogger(__name__)

REPLANS = 2
BACKOFF_S = 0.05
"""Time before a request without a lease is planned again; doubles with every refusal."""
LONGEST_BACKOFF_S = 2.0
SHORTEST_TICK_S = 0.05
WATCH_AGAIN_S = 0.2

Launched = tuple[int, Plan]
Item = Placed | Displaced | Progress | FirstToken | Finished
Emit = Callable[[Item], None]


class SchedulerService:
    """Handlers of the scheduler.

    Args:
        schemes: how prefill groups may work together.
        model: identifies the model in page hashes, since KV of other models is different.
        directory: the KV directory on the bus.
        telemetry: receives an event for every stage of every request.
        traces: records where the time of each request goes.
    """

    def __init__(
        self,
        config: Cluster,
        schemes: Schemes,
        model: str,
        directory: Peer,
        telemetry: Publisher,
        traces: Recorder = FORGETFUL,
    ) -> None:
        self._config = config
        self._schemes = schemes
        self._submissions = Submissions(config, schemes, model)
        self._directory = directory
        self._telemetry = telemetry
        self._traces = traces
        self._core = Core(
            POLICIES[config.scheduler.policy](config.scheduler, schemes),
            Fleet(
                config.prefill,
                config.decode,
                config.mixed,
                config.scheduler.duties,
                measuring_for(config.sharing),
            ),
            config.scheduler.max_queue,
            config.scheduler.patience_s,
        )
        self.log = EventLog(self._core, config.scheduler, schemes)
        """Handles `Record`."""
        self.pins = Pins(config, self._submissions, directory)
        """Handles `Pin`."""
        self._tick: asyncio.TimerHandle | None = None
        self._replans = Counter[str]()
        self._launches: dict[str, asyncio.Future[Launched]] = {}
        self._jobs: dict[str, Job] = {}
        self._members = Members(
            config.bus,
            lambda register: self._handle(Joined(register.shard, register.draining)),
            lambda shard: self._handle(Lost(shard.id, shard.peer.name)),
        )
        peers = self._members.peers
        self.retirement = Retirement(self._core, peers, self._handle)
        """Handles `Drain` and the like."""
        self._lookups = Lookups(directory, self._core, peers, self._handle)
        self._errands = Errands(self._lookups, self._members, self._handle)

    async def watch_room(self) -> None:
        """Keep the directory's room up to date while the service runs."""
        while True:
            try:
                async with self._directory.stream(Watch()) as rooms:
                    async for room in rooms:
                        self._handle(RoomSeen(room))
            except ServiceError as error:
                log.warning("watching the KV directory: %s; again", error)
                lost = isinstance(error, PeerLost)
                await asyncio.sleep(WATCH_AGAIN_S if lost else self._config.bus.heartbeat_s)

    async def register(self, request: Register) -> AsyncGenerator[Done, None]:
        async with aclosing(self._members.register(request)) as accepted:
            async for done in accepted:
                yield done

    async def submit(self, request: Submit) -> AsyncIterator[Item]:
        async def job(emit: Emit) -> None:
            await self._run(request, emit)

        async for item in emitted_by(job):
            yield item

    async def predict(self, request: Predict) -> Predicted:
        """What would become of a request that came now; see `Predicted`."""
        submit = self._submissions.bounded(request.submit, self._core.fleet)
        work, hashes = self._submissions.work(submit)
        cached: tuple[CachedRun, ...] = ()
        if work.hashes:
            with suppress(ServiceError):
                cached = (await self._directory.call(Lookup(hashes.hashes), FIND_S)).runs
        found = self._core.forecast(work, cached, time.monotonic())
        times = found.queue_s, found.prefill_s, found.tbt_s
        if found.plan is None:
            return Predicted(found.waits_for, *times)
        partition = found.plan.partition
        return Predicted(
            "",
            *times,
            len(found.plan.group),
            partition.scheme,
            partition.predicted_bytes,
            found.plan.prefix.tokens,
        )

    async def set_duty(self, request: SetDuty) -> Done:
        self._handle(Assigned(request.shard, request.duty))
        if (duty := self._core.fleet.duty(request.shard)) != request.duty:
            policy = self._config.scheduler.policy
            raise Invalid(f"the policy {policy} sets duties: {request.shard} has {duty}", "duty")
        return Done()

    async def show_fleet(self, request: ShowFleet) -> FleetStatus:
        return FleetStatus(
            statuses(self._core.fleet),
            self._core.requests(time.monotonic()),
            self.waiting_for(),
            self._core.fleet.serving(),
            Rates(*self._schemes.hardware),
        )

    def waiting_for(self) -> str:
        """What is missing of the configured shards, in words; empty when all are present."""
        parts = self._core.fleet.waiting_for(), *self._members.unfit.values()
        return "; ".join(filter(None, parts))

    def obstacle(self) -> str:
        """What is missing to serve requests, in words; empty when nothing is."""
        return "" if self._core.fleet.serving() else self.waiting_for()

    def counters(self) -> dict[str, float]:
        """For heartbeats: requests by stage, how often they were planned again, shards by role."""
        stages = [status.stage for status in self._core.requests(time.monotonic())]
        return {
            "requests_waiting": float(stages.count("queued")),
            "requests_running": float(len(stages) - stages.count("queued")),
            "replans_refused": float(self._replans["refused"]),
            "replans_lost": float(self._replans["lost"]),
            "preemptions": float(self._core.preemptions),
            "handovers": float(self._core.handovers),
            "broken_rules": float(self._core.broken_rules),
            **self._core.fleet.counters(),
        }

    async def close(self) -> None:
        if self._tick is not None:
            self._tick.cancel()
        self._errands.close()
        await self._members.close()

    async def _run(self, submit: Submit, emit: Emit) -> None:
        if submit.request in self._launches:
            raise Invalid(f"{submit.request} is running already")
        submit = self._submissions.bounded(submit, self._core.fleet)
        work, hashes = self._submissions.work(submit)
        trail = self._traces.trail(submit.request, submit.traceparent)
        self._replans["lost"] += bool(submit.sampling.answered) and not submit.room_tokens
        replans = refusals = 0
        queued_s = 0.0
        answering = False
        job: Job | None = None

        def watch(item: Item) -> None:
            nonlocal answering
            answering = answering or isinstance(item, FirstToken)
            if isinstance(item, Finished):
                self._handle(Decoded(work.request, item.tokens - submit.sampling.answered))
            emit(item)

        self._publish(
            work.request,
            "queued",
            prompt_tokens=work.prompt_tokens,
            max_tokens=work.max_tokens,
        )
        error = "cancelled"
        launch = self._expect_launch(work)
        self._handle(Submitted(work))
        try:
            while True:
                since_s = time.monotonic()
                with trail.during("queue"):
                    epoch, plan = await launch
                queued_s += time.monotonic() - since_s
                try:
                    job = self._job(submit, epoch, plan, hashes, queued_s, trail)
                    self._jobs[work.request] = job
                    await job.run(watch)
                except Preempted:
                    if answering:
                        raise
                    again = Returned(work.request, BACKOFF_S)
                except Refused:
                    self._replans["refused"] += 1
                    rest_s = min(LONGEST_BACKOFF_S, BACKOFF_S * 2**refusals)
                    again, refusals = Returned(work.request, rest_s), refusals + 1
                except PeerLost as lost:
                    if job is not None:
                        await self._members.ask(job.contacts.shards)
                    if answering or replans == REPLANS or lost.peer == self._directory.name:
                        raise
                    again, replans = Returned(work.request), replans + 1
                    self._replans["lost"] += 1
                    log.warning("request %s: %s; planning anew", work.request, lost)
                else:
                    error = ""
                    return
                emit(Displaced(epoch))
                launch = self._expect_launch(work)
                self._handle(again)
        except ServiceError as failure:
            error = str(failure)
            if isinstance(failure, Invalid | Refused):
                self._traces.refuse(submit.request)
            raise
        finally:
            self._launches.pop(work.request, None)
            self._lookups.queued.pop(work.request, None)
            self._jobs.pop(work.request, None)
            self._handle(Ended(work.request))
            self._publish(work.request, "ended", **({"error": error} if error else {}))

    def _job(
        self,
        submit: Submit,
        epoch: int,
        plan: Plan,
        hashes: PromptHashes,
        queued_s: float,
        trail: Trail,
    ) -> Job:
        listener = Listening(submit.request, self._handle, self._publish, self._members.lose)
        contacts = Contacts(*self._reached(plan), listener)
        self._publish(
            submit.request,
            "reserving",
            epoch=epoch,
            owner=plan.owner,
            group=" ".join(plan.group),
            holders=" ".join(place.shard for place in plan.placements),
            attention=plan.partition.attention,
            method=plan.partition.scheme.method,
            cached_tokens=plan.prefix.tokens,
        )
        return Job(
            submit,
            epoch,
            plan,
            hashes,
            self._directory,
            contacts,
            listener,
            queued_s,
            trail,
            lambda: self._core.urgency(submit.request),
            self._config.kv.growth_tokens or submit.sampling.left,
        )

    def _reached(self, plan: Plan) -> tuple[dict[str, Peer], dict[str, Shard]]:
        """The shards of a plan, on the bus and as members. Raises PeerLost if one has gone."""
        members = self._core.fleet.members
        if missing := plan.shards - members.keys():
            raise PeerLost(min(missing))
        peers = {shard: self._members.peers[shard] for shard in plan.shards}
        return peers, {shard: members[shard].shard for shard in plan.shards}

    def _proceed(self, action: Proceed) -> None:
        if job := self._jobs.get(action.request):
            try:
                job.proceed(action.plan, *self._reached(action.plan))
            except PeerLost as lost:
                job.fail(lost)

    def _expect_launch(self, work: Work) -> asyncio.Future[Launched]:
        launch: asyncio.Future[Launched] = asyncio.get_running_loop().create_future()
        self._launches[work.request] = launch
        self._lookups.queued[work.request] = work
        return launch

    def _handle(self, event: Event) -> None:
        for action in self.log.handle(event, time.monotonic()):
            match action:
                case Find() | ChangeUrgency() | Probe():
                    self._errands.run(action)
                case Proceed():
                    self._proceed(action)
                case Fail(id, error):
                    self._jobs[id].fail(error)
                case Preempt(id):
                    self._jobs[id].preempt()
                case Launch(id) | Reject(id) if self._launches[id].done():
                    pass  # its caller has just ended; `Ended` follows
                case Launch(id, epoch, plan):
                    self._lookups.queued.pop(id, None)
                    self._launches[id].set_result((epoch, plan))
                case Reject(id, error):
                    self._launches[id].set_exception(error)
        self._set_tick()

    def _set_tick(self) -> None:
        """Schedule the next `Tick` for the time that the core needs it."""
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        if (at_s := self._core.wakes_at()) is not None:
            wait_s = max(SHORTEST_TICK_S, at_s - time.monotonic())
            self._tick = asyncio.get_running_loop().call_later(wait_s, self._handle, Tick())

    def _publish(self, request: str, stage: str, **detail: str | float) -> None:
        self._telemetry.publish(RequestEvent(request, stage, time.time(), detail))
