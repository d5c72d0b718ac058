"""A cluster as a state machine: the real core and the real directory, and messages between them.

Everything that the bus delivers is a step: which come next, in which order, is for the explorer to
choose. The pools of shards and the stages of jobs follow `services/scheduler/job.py` and
`services/decode/kv/holding.py`, without KV.
"""

import copy
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from sps2.common.config import Scheduler, Sharing
from sps2.common.errors import Invalid, PeerLost, Refused
from sps2.common.messages import Peer, Shard
from sps2.services.kvdir.directory import Directory
from sps2.services.scheduler.actions import Action, Find, Launch, Reject
from sps2.services.scheduler.cached_prefix import own_hashes, shared_hashes
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import (
    Ended,
    Event,
    Found,
    Granted,
    Joined,
    Lost,
    Prefilled,
    Returned,
    RoomSeen,
    Shareable,
    Submitted,
    Tick,
)
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.plan import Plan, Work
from sps2.services.scheduler.policies import POLICIES
from sps2.services.scheduler.schemes import Schemes

from ..services.world import tiny_config
from .pool import PAGES, Broken, Key, Pool

PAGE = 16
PROMPT, ANSWER = 40, 20
REPLANS = LOSSES = 2
REST_S = 0.05

Stage = Literal["absent", "queued", "leasing", "holding", "prefill", "decode", "done"]
Step = tuple[str, Callable[[], None]]
"""What happens, in words, and what it does."""

SCHEMES = Schemes(tiny_config(), 2, Sharing(gflops=10.0, link_latency_s=0.0))
SETTINGS = Scheduler(prefill_span_tokens=32, decode_span_tokens=32)


@dataclass
class Job:
    """One request, from its submission to its end, resubmissions after a loss included."""

    name: str
    hashes: tuple[bytes, ...]
    stage: Stage = "absent"
    submission: int = 0
    epoch: int = 0
    plan: Plan | None = None
    lives: dict[str, int] = field(default_factory=dict)
    """Of the plan's shards, when it was made."""
    replans: int = 0
    own: dict[str, tuple[bytes, ...]] = field(default_factory=dict)
    is_leased: bool = False
    """Whether the directory knows of its lease; not after a restart, until it is restored."""
    is_shared: bool = False
    finds: bool = False
    """Whether its pages are being looked up."""

    @property
    def id(self) -> str:
        return f"{self.name}.{self.submission}" if self.submission else self.name

    @property
    def key(self) -> Key:
        return self.id, self.epoch


class World:
    """All of it. `steps` has what may come next; a copy is as good as the original.

    Args:
        policy: by name.
        deaths: what may die: shards, or "directory"; one in all.
        cancels: how many clients may leave early.
    """

    def __init__(self, policy: str, deaths: tuple[str, ...], cancels: int) -> None:
        self.now_s = 0.0
        self.deaths, self.cancels = deaths, cancels
        self.core = Core(POLICIES[policy](SETTINGS, SCHEMES), Fleet(1, 2), 8)
        self.directory = Directory()
        self.room_is_old = False
        self.unleased: set[Key] = set()
        """Leases whose end the directory has not heard of yet."""
        self.pools = {"prefill-0": Pool("prefill-0", 0)}
        self.pools |= {f"decode-{n}": Pool(f"decode-{n}", PAGES) for n in range(2)}
        shared = (b"first page",)
        self.jobs = {name: Job(name, (*shared, name.encode())) for name in ("a", "b")}
        for pool in self.pools.values():
            self._announce(pool)
            self._handle(Joined(self._shard(pool)))
        self._see_room()

    def copy(self) -> "World":
        """A world that goes its own way."""
        return copy.deepcopy(self, {id(self.core.policy): self.core.policy})

    @property
    def is_over(self) -> bool:
        """Whether all requests have ended."""
        return all(job.stage == "done" for job in self.jobs.values())

    def steps(self) -> Iterator[Step]:
        """What may come next."""
        yield from self.faults()
        yield from self.deliveries()

    def faults(self) -> Iterator[Step]:
        """What need not come: deaths, and clients that leave."""
        for victim in self.deaths:
            if victim == "directory":
                yield "the directory restarts", self._restart_directory
            else:
                yield f"{victim} dies", partial(self._die, self.pools[victim])
        for job in self.jobs.values():
            if self.cancels and job.stage not in ("absent", "done"):
                yield f"the client of {job.id} leaves", partial(self._cancel, job)

    def deliveries(self) -> Iterator[Step]:
        """What comes sooner or later."""
        for job in self.jobs.values():
            yield from self._deliveries_of(job)
        for pool in self.pools.values():
            yield from self._deliveries_at(pool)
        for key in sorted(self.unleased):
            yield f"the directory hears that {key} ended", partial(self._unlease, key)
        if self.room_is_old:
            yield "the scheduler hears of the room", self._see_room
        if (at_s := self.core.wakes_at()) is not None:
            yield "time passes", partial(self._tick, at_s)

    def _deliveries_of(self, job: Job) -> Iterator[Step]:
        if job.stage == "absent":
            yield f"{job.id} is submitted", partial(self._submit, job)
        if job.finds:
            yield f"the pages of {job.id} are looked up", partial(self._find, job)
        if job.plan is None:
            return
        if self._has_lost(job):
            yield f"{job.id} hears of its loss", partial(self._lose, job)
            return
        if job.stage == "leasing":
            yield f"the directory is asked for the lease of {job.id}", partial(self._lease, job)
        elif not job.is_leased:
            yield f"the lease of {job.id} is restored", partial(self._restore, job)
        if job.stage == "holding":
            short = self._short_of_pages(job)
            if short is None:
                yield f"the shards hold {job.id}", partial(self._hold, job)
            elif not short.leaving and not short.evicted:
                raise Broken(f"{job.id} has a lease, and {short.id} has no pages for it")
        if job.stage == "prefill":
            yield f"{job.id} is prefilled", partial(self._prefill, job)
        if job.stage == "decode":
            if not job.is_shared and job.is_leased:
                yield f"the pages of {job.id} are committed", partial(self._share, job)
            yield f"{job.id} is answered", partial(self._end, job)

    def _deliveries_at(self, pool: Pool) -> Iterator[Step]:
        for key in sorted(pool.leaving):
            yield f"{pool.id} hears that {key} ended", partial(self._release, pool, key)
        if pool.evicted:
            yield f"{pool.id} evicts {pool.evicted}", pool.evict
        if not pool.is_alive:
            if pool.is_member:
                yield f"the scheduler notices the loss of {pool.id}", partial(self._leave, pool)
            if pool.is_announced:
                yield f"the directory notices the loss of {pool.id}", partial(self._withdraw, pool)
            if not pool.is_member and not pool.is_announced:
                yield f"{pool.id} starts again", partial(self._start, pool)
            return
        if not pool.is_member:
            yield f"{pool.id} joins", partial(self._join, pool)
        if not pool.is_announced:
            yield f"{pool.id} announces itself", partial(self._announce, pool)

    # --- requests ---

    def _submit(self, job: Job) -> None:
        job.stage = "queued"
        work = Work(job.id, PROMPT, ANSWER, hashes=job.hashes, resumes=bool(job.submission))
        self._handle(Submitted(work))

    def _find(self, job: Job) -> None:
        job.finds = False
        self._handle(Found(job.id, self.directory.find(job.hashes)))

    def _lease(self, job: Job) -> None:
        assert job.plan is not None
        shared = shared_hashes(job.plan.placements, job.hashes, PAGE)
        try:
            self.directory.reserve(*job.key, job.plan.placements, shared)
        except Refused:
            self._return(job, REST_S)
            return
        job.stage, job.is_leased, self.room_is_old = "holding", True, True
        self._handle(Granted(job.id, self.directory.room()))

    def _restore(self, job: Job) -> None:
        assert job.plan is not None
        shared = shared_hashes(job.plan.placements, job.hashes, PAGE)
        self.directory.reserve(*job.key, job.plan.placements, shared, True, job.own)
        job.is_leased = self.room_is_old = True

    def _hold(self, job: Job) -> None:
        assert job.plan is not None
        shared = shared_hashes(job.plan.placements, job.hashes, PAGE)
        for shard, hashes in shared.items():
            if missing := {*hashes} - self.pools[shard].cached:
                self._report(self.pools[shard], missing)
                self._return(job, REST_S)
                return
        for place in job.plan.placements:
            pool = self.pools[place.shard]
            pool.hold(job.key, place.pages, shared.get(place.shard, ()))
        job.stage = "prefill"

    def _prefill(self, job: Job) -> None:
        assert job.plan is not None
        for shard, hashes in own_hashes(job.plan.placements, job.hashes, PAGE).items():
            self.pools[shard].fill(job.key, hashes)
        job.stage = "decode"
        self._handle(Prefilled(job.id))

    def _share(self, job: Job) -> None:
        assert job.plan is not None
        hashes = own_hashes(job.plan.placements, job.hashes, PAGE)
        kept = self.directory.commit(*job.key, hashes)
        job.own = {shard: own for shard, own in kept.items() if own}
        job.is_shared = self.room_is_old = True
        self._handle(Shareable(job.id))

    def _cancel(self, job: Job) -> None:
        self.cancels -= 1
        self._end(job)

    def _lose(self, job: Job) -> None:
        if job.stage == "decode" and job.submission < LOSSES:
            self._end(job)  # the gateway submits the rest of the answer
            job.stage, job.submission, job.epoch, job.replans = "absent", job.submission + 1, 0, 0
        elif job.stage != "decode" and job.replans < REPLANS:
            job.replans += 1
            self._return(job, None)
        else:
            self._end(job)

    def _return(self, job: Job, rest_s: float | None) -> None:
        self._release_all(job)
        job.stage, job.plan = "queued", None
        self._handle(Returned(job.id, rest_s))

    def _end(self, job: Job) -> None:
        self._release_all(job)
        job.stage, job.plan, job.finds = "done", None, False
        self._handle(Ended(job.id))

    def _release_all(self, job: Job) -> None:
        """The job's streams end; those at their other ends hear of it later."""
        if job.is_leased:
            self.unleased.add(job.key)
        for pool in self.pools.values():
            if job.key in pool.held:
                pool.leaving.add(job.key)
        job.is_leased = job.is_shared = False
        job.own = {}

    # --- shards and directory ---

    def _die(self, pool: Pool) -> None:
        self.deaths = ()
        pool.die()

    def _leave(self, pool: Pool) -> None:
        pool.is_member = False
        self._handle(Lost(pool.id, pool.peer))

    def _withdraw(self, pool: Pool) -> None:
        pool.is_announced = False
        self.directory.withdraw(pool.id, pool.peer)
        self.room_is_old = True

    def _start(self, pool: Pool) -> None:
        pool.life += 1
        pool.is_alive = True

    def _join(self, pool: Pool) -> None:
        pool.is_member = True
        self._handle(Joined(self._shard(pool)))

    def _announce(self, pool: Pool) -> None:
        pool.is_announced = self.room_is_old = True
        if pool.pages:
            pool.news.clear()
            pool.evicted = self.directory.announce(
                pool.id, pool.peer, pool.pages, PAGE, pool.holdings, sorted(pool.cached)
            )

    def _release(self, pool: Pool, key: Key) -> None:
        pool.release(key)
        self._report(pool)

    def _report(self, pool: Pool, missing: Collection[bytes] = ()) -> None:
        news = sorted(pool.news)
        try:
            self.directory.report(pool.id, pool.peer, pool.holdings, news, sorted(missing))
        except Invalid:
            return
        pool.news.clear()
        self.room_is_old = True

    def _restart_directory(self) -> None:
        self.deaths = ()
        self.directory = Directory()
        self.unleased.clear()
        self.room_is_old = True
        for pool in self.pools.values():
            pool.is_announced, pool.evicted = False, []
        for job in self.jobs.values():
            job.is_leased = job.is_shared = False

    def _unlease(self, key: Key) -> None:
        self.unleased.discard(key)
        self.directory.release(*key)
        self.room_is_old = True

    def _see_room(self) -> None:
        self.room_is_old = False
        self._handle(RoomSeen(self.directory.room()))

    # --- the scheduler ---

    def _tick(self, at_s: float) -> None:
        self.now_s = max(self.now_s, at_s)
        self._handle(Tick())

    def _handle(self, event: Event) -> None:
        for action in self.core.handle(event, self.now_s):
            self._carry_out(action)

    def _carry_out(self, action: Action) -> None:
        job = next(each for each in self.jobs.values() if each.id == action.request)
        match action:
            case Find():
                job.finds = True
            case Launch(_, epoch, plan):
                job.stage, job.epoch, job.plan = "leasing", epoch, plan
                job.lives = {shard: self.pools[shard].life for shard in plan.shards}
            case Reject(_, PeerLost()):  # it has waited for absent shards for too long
                job.stage, job.finds = "done", False
            case Reject(_, error):
                raise Broken(f"{job.id} is refused: {error}")

    def _has_lost(self, job: Job) -> bool:
        return any(
            not self.pools[shard].is_alive or self.pools[shard].life != life
            for shard, life in job.lives.items()
        )

    def _short_of_pages(self, job: Job) -> Pool | None:
        assert job.plan is not None
        for place in job.plan.placements:
            if self.pools[place.shard].free < place.pages:
                return self.pools[place.shard]
        return None

    def _shard(self, pool: Pool) -> Shard:
        peer = Peer(pool.peer, "tcp://127.0.0.1:1", bytes(16))
        role = "decode" if pool.pages else "prefill"
        return Shard(pool.id, role, 1, "tcp://x", peer, pool.pages, PAGE if pool.pages else 0)
