"""The scheduler's decisions as a pure state machine: events and a clock in, actions out."""

from collections import deque
from dataclasses import dataclass
from typing import Literal

from sps2.common.errors import PeerLost, Refused, ServiceError
from sps2.common.messages import CachedRun, RequestStatus, Room, Shard, ShardStatus
from sps2.common.page_hashes import common_pages
from sps2.services.scheduler.apart import APART_S, planned
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.plan import Plan, Wait, Work
from sps2.services.scheduler.policy import Policy


@dataclass(frozen=True)
class Joined:
    shard: Shard


@dataclass(frozen=True)
class Lost:
    """A shard ended; `peer` is the data-plane name that it had since its last start."""

    shard: str
    peer: str


@dataclass(frozen=True)
class Parted:
    """Two processes, by their data-plane names, have lost the link between them."""

    one: str
    other: str


@dataclass(frozen=True)
class RoomSeen:
    room: Room


@dataclass(frozen=True)
class Submitted:
    work: Work


@dataclass(frozen=True)
class Found:
    """The directory's answer to `Find`."""

    request: str
    cached: tuple[CachedRun, ...]


@dataclass(frozen=True)
class Granted:
    """The directory leased the pages of a launched request; `room` is what is left."""

    request: str
    room: Room


@dataclass(frozen=True)
class Returned:
    """A launched request could not go on and is to run again.

    rest_s: seconds before it is planned again, if it got no lease; None if a shard was lost.
    """

    request: str
    rest_s: float | None = None


@dataclass(frozen=True)
class Prefilled:
    request: str


@dataclass(frozen=True)
class Shareable:
    """The full pages of a request's prompt are cached now."""

    request: str


@dataclass(frozen=True)
class Ended:
    """A request is over, however it ended."""

    request: str


@dataclass(frozen=True)
class Tick:
    """Time has passed; see `Core.wakes_at`."""


Event = (
    Joined
    | Lost
    | Parted
    | RoomSeen
    | Submitted
    | Found
    | Granted
    | Returned
    | Prefilled
    | Shareable
    | Ended
    | Tick
)


@dataclass(frozen=True)
class Find:
    """Ask the directory which pages of a prompt are cached."""

    request: str
    hashes: tuple[bytes, ...]


@dataclass(frozen=True)
class Launch:
    """Reserve, prefill, decode as planned."""

    request: str
    epoch: int
    plan: Plan


@dataclass(frozen=True)
class Reject:
    request: str
    error: ServiceError


Action = Find | Launch | Reject

TRUSTING_LOSSES = 2
"""After so many losses a request no longer uses cached pages: it computes its whole prompt."""
OVERTAKINGS = 64
"""How many later requests may overtake one that waits for room; then they wait behind it."""
LOOKAHEAD = 32
"""How many requests may wait for room while later ones are still considered."""

Stage = Literal["queued", "reserving", "prefill", "transfer", "decode"]


@dataclass
class Entry:
    work: Work
    submitted_s: float
    epoch: int = 0
    stage: Stage = "queued"
    plan: Plan | None = None
    cached: tuple[CachedRun, ...] | None = None
    """Cached pages of the prompt; None until the directory answers, or if more may be cached."""
    is_finding: bool = False
    """Whether a `Find` for it is under way."""
    is_shareable: bool = False
    losses: int = 0
    overtaken: int = 0
    """How many later requests ran before it while it waited for room."""
    rests_until_s: float = 0.0
    absent_since_s: float | None = None
    """Since when it waits for absent shards."""

    @property
    def is_trusting(self) -> bool:
        return bool(self.work.hashes) and self.losses < TRUSTING_LOSSES

    def gains_from(self, other: "Entry") -> bool:
        """Whether to wait for the other's pages: most of what that computes now is shared."""
        if other.plan is None or not self.is_trusting:
            return False
        prefix = other.plan.prefix
        wanted = (self.work.prompt_tokens - 1) // prefix.page_tokens
        shared = min(wanted, common_pages(self.work.hashes, other.work.hashes)) - prefix.pages
        return shared > 0 and 2 * shared >= len(other.work.hashes) - prefix.pages


class Core:
    """Admission in order of arrival, placement by a policy.

    A request is launched when it is at the head of the queue and the policy finds shards and pages
    for it. A returned request goes back to the head with its epoch counted up. Three kinds of
    requests let later ones pass. One that shares a prefix with a request being prefilled waits for
    the pages of that request. One that waits for room lets `OVERTAKINGS` pass. One that waits for
    absent shards fails after `patience_s` seconds.
    """

    def __init__(
        self, policy: Policy, fleet: Fleet, max_queue: int, patience_s: float = 60.0
    ) -> None:
        self.fleet = fleet
        self._policy = policy
        self._max_queue = max_queue
        self._patience_s = patience_s
        self._entries: dict[str, Entry] = {}
        self._queue: deque[str] = deque()

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Apply one event; the caller carries out the returned actions in their order."""
        self.fleet.reunite(now_s)
        match event:
            case Joined(shard):
                self.fleet.join(shard)
            case Lost(shard_id, peer):
                self.fleet.lose(shard_id, peer)
            case Parted(one, other):
                self.fleet.part(one, other, now_s + APART_S)
            case RoomSeen(room):
                self.fleet.room = room
            case Submitted(work):
                if len(self._queue) >= self._max_queue:
                    count = len(self._queue)
                    waiting = f"{count} requests are" if count > 1 else "a request is"
                    error = Refused(f"{waiting} waiting already; retry later")
                    return [Reject(work.request, error)]
                self._entries[work.request] = Entry(work, now_s)
                self._queue.append(work.request)
            case Found(request, cached):
                if entry := self._entries.get(request):
                    entry.cached, entry.is_finding = cached, False
            case Granted(request, room):
                self.fleet.pending.pop(request, None)
                self.fleet.room = room
                self._entries[request].stage = "prefill"
            case Returned(request, rest_s):
                self._leave_shards(request)
                entry = self._entries[request]
                entry.losses += rest_s is None
                entry.rests_until_s = now_s + (rest_s or 0.0)
                entry.epoch, entry.stage, entry.plan = entry.epoch + 1, "queued", None
                entry.cached, entry.is_shareable = None, False
                self._queue.appendleft(request)
            case Prefilled(request):
                entry = self._entries[request]
                entry.stage = "transfer"
                for shard_id in entry.plan.group if entry.plan else ():
                    if member := self.fleet.members.get(shard_id):
                        member.prefilled.pop(request, None)
            case Shareable(request):
                entry = self._entries[request]
                entry.is_shareable, entry.stage = True, "decode"
                self._doubt_cached()
            case Ended(request):
                self._end(request)
            case Tick():
                pass
        return self._admit(now_s)

    def wakes_at(self) -> float | None:
        """The time at which the next `Tick` is due; None if none is."""
        times = [
            time_s
            for request in self._queue
            for entry in (self._entries[request],)
            for time_s in (
                self.fleet.apart_until_s(),
                entry.rests_until_s or None,
                None if entry.absent_since_s is None else entry.absent_since_s + self._patience_s,
            )
            if time_s is not None
        ]
        return min(times, default=None)

    def _admit(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        computing = [each for each in self._entries.values() if each.plan and not each.is_shareable]
        waiting: list[Entry] = []
        for request in list(self._queue):
            entry = self._entries[request]
            if entry.rests_until_s > now_s:
                continue
            entry.rests_until_s = 0.0
            if any(entry.gains_from(other) for other in computing):
                continue
            try:
                plan = self._planned(entry, now_s)
            except ServiceError as error:
                self._queue.remove(request)
                del self._entries[request]
                actions.append(Reject(request, error))
                continue
            if isinstance(plan, Wait) and plan.cause == "absent":
                continue
            if entry.cached is None and entry.is_trusting:
                if not entry.is_finding:
                    entry.is_finding = True
                    actions.append(Find(request, entry.work.hashes))
                break
            if isinstance(plan, Wait):
                waiting.append(entry)
                may_pass = plan.cause == "room" and entry.overtaken < OVERTAKINGS
                if may_pass and len(waiting) < LOOKAHEAD:
                    continue
                break
            for other in waiting:
                other.overtaken += 1
            self._queue.remove(request)
            entry.plan, entry.stage = plan, "reserving"
            computing.append(entry)
            self._enter_shards(request, plan)
            actions.append(Launch(request, entry.epoch, plan))
        return actions

    def _planned(self, entry: Entry, now_s: float) -> Plan | Wait:
        """The policy's plan, or why the request waits.

        Raises:
            Invalid: the request can never run.
            PeerLost: it has waited for absent shards for too long.
        """
        plan = planned(self._policy, entry.work, entry.cached or (), self.fleet)
        if not isinstance(plan, Wait) or plan.cause != "absent":
            entry.absent_since_s = None
            return plan
        if entry.absent_since_s is None:
            entry.absent_since_s = now_s
        if now_s - entry.absent_since_s >= self._patience_s:
            missing = self.fleet.waiting_for() or "them"
            why = f"{plan.reason}, and it has waited {self._patience_s:g} s for {missing}"
            raise PeerLost(self.fleet.keeping, f"{why}; retry later")
        return plan

    def _enter_shards(self, request: str, plan: Plan) -> None:
        self.fleet.pending[request] = plan.takes
        for shard_id in plan.group:
            tokens = self._entries[request].work.prompt_tokens - plan.prefix.tokens
            self.fleet.members[shard_id].prefilled[request] = tokens
        for place in plan.placements:
            self.fleet.members[place.shard].held.add(request)
        self.fleet.members[plan.owner].owned.add(request)

    def _doubt_cached(self) -> None:
        """More pages may be cached: queued requests look them up again when it is their turn."""
        for request in self._queue:
            self._entries[request].cached = None

    def _end(self, request: str) -> None:
        self._leave_shards(request)
        entry = self._entries.pop(request, None)
        if entry is None:
            return
        if entry.plan is None:
            self._queue.remove(request)
        else:
            self._doubt_cached()

    def _leave_shards(self, request: str) -> None:
        self.fleet.pending.pop(request, None)
        for member in self.fleet.members.values():
            member.leave(request)

    def requests(self, now_s: float) -> tuple[RequestStatus, ...]:
        """The status of every request, in order of arrival."""
        return tuple(
            RequestStatus(
                request,
                entry.stage,
                entry.work.prompt_tokens,
                now_s - entry.submitted_s,
                entry.epoch,
                len(entry.plan.group) if entry.plan else 0,
                entry.plan.owner if entry.plan else "",
                entry.plan.placements if entry.plan else (),
                entry.plan.prefix.tokens if entry.plan else 0,
                entry.plan.group if entry.plan else (),
                entry.work.max_tokens,
            )
            for request, entry in self._entries.items()
        )

    def shards(self) -> tuple[ShardStatus, ...]:
        """The status of every shard, lost ones included, by id."""
        here = [
            ShardStatus(
                shard.id,
                shard.role,
                "busy" if member.requests else "ready",
                shard.pid,
                shard.address,
                shard.peer.name,
                shard.peer.address.partition(":")[0],
                shard.pages,
                self.fleet.room.free.get(shard.id, 0),
                tuple(sorted(member.requests)),
                tuple(follower.address for follower in shard.followers),
            )
            for member in self.fleet.members.values()
            for shard in (member.shard,)
        ]
        gone = [
            ShardStatus(shard.id, shard.role, "lost", shard.pid)
            for shard in self.fleet.lost.values()
        ]
        return tuple(sorted(here + gone, key=lambda status: status.id))
