"""Follows a recorded live run with the KV directory of the simulator, to compare free pages."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

from sps2.common.errors import ServiceError
from sps2.common.messages import CachedRun, Room, Shard
from sps2.common.spans import pages_for
from sps2.services.kvdir.directory import Directory
from sps2.services.scheduler.actions import Launch
from sps2.services.scheduler.cached_prefix import hashes_from_disk, own_hashes, shared_hashes
from sps2.services.scheduler.core_state import CoreState
from sps2.services.scheduler.event_log import Entry
from sps2.services.scheduler.events import (
    Chunked,
    Ended,
    Found,
    Granted,
    Grew,
    Joined,
    Lost,
    ReadAhead,
    ReadingAhead,
    Returned,
    RoomSeen,
    Shareable,
    Submitted,
)
from sps2.services.scheduler.lookups import AHEAD
from sps2.services.scheduler.plan import Plan, Work

WINDOW = 16
"""So many entries before and after one may have been another order at the directory."""
UNDER_WAY = 4
"""At most so many changes of these are tried together."""

Pages = Mapping[str, int]


@dataclass
class Compared:
    """rooms: how often the live directory reported its free pages. differing: reports that the
    simulated directory cannot have made, in words."""

    rooms: int = 0
    differing: list[str] = field(default_factory=list)


@dataclass
class _Lease:
    epoch: int
    plan: Plan
    is_granted: bool = False
    grown: int = 0


class DirectoryReplay:
    """Does with a directory of its own what the recorded events say that leases did.

    A recording has events in the scheduler's order. At the directory, requests that were under way
    at the same time may have come in another order: a report fits if it follows from the entries
    up to it, but for some of those close to it.

    Args:
        state: of the core before the first event.
    """

    def __init__(self, state: CoreState) -> None:
        self._directory = Directory()
        self._leases: dict[str, _Lease] = {}
        self._works: dict[str, Work] = {}
        self._ahead: dict[str, dict[str, tuple[bytes, ...]]] = {}
        """Pages that are read for requests in the queue."""
        self._number = 0
        self._changes: deque[tuple[int, dict[str, int]]] = deque()
        """Recent changes of free pages, by number of entry."""
        self._reported: deque[tuple[int, Pages]] = deque()
        """Reports that do not fit yet."""
        self.compared = Compared()
        for member in state.fleet.members:
            self._announce(member.shard)
        for request in state.requests:
            self._works[request.id] = request.work
            if request.plan is not None:
                self._leases[request.id] = _Lease(request.epoch, request.plan)
                if request.stage != "reserving":
                    self._reserve(request.id)

    def follow(self, entry: Entry) -> None:
        """Follow the next entry."""
        self._number += 1
        before = self._free()
        self._apply(entry)
        for action in entry.actions:
            if isinstance(action, Launch):
                self._leases[action.request] = _Lease(action.epoch, action.plan)
        after = self._free()
        if after != before:
            change = {id: after[id] - before.get(id, 0) for id in after}
            self._changes.append((self._number, change))
        self._match()

    def finish(self) -> Compared:
        """The result, after the last entry."""
        self._number += 2 * WINDOW
        self._match()
        return self.compared

    def _apply(self, entry: Entry) -> None:
        match entry.event:
            case Joined(shard):
                self._announce(shard)
            case Lost(shard_id, peer):
                self._directory.withdraw(shard_id, peer)
            case Submitted(work):
                self._works[work.request] = work
            case Found(request, cached):
                self._adopt(request, cached)
            case ReadingAhead(request, places, hashes):
                self._ahead[request] = hashes
                self._directory.reserve(request + AHEAD, 0, places, restore=True, from_disk=hashes)
            case ReadAhead(request, cached):
                hashes = self._ahead.pop(request, {})
                if cached:
                    self._directory.commit(request + AHEAD, 0, hashes)
                self._directory.release(request + AHEAD, 0)
            case Granted(request, room):
                self._reserve(request)
                self._note(room)
            case Grew(request, room):
                self._extend(request, room)
                self._note(room)
            case RoomSeen(room):
                self._note(room)
            case Chunked(request) | Shareable(request):
                self._commit(request)
            case Returned(request) | Ended(request):
                self._release(request)

    def _free(self) -> dict[str, int]:
        return self._directory.room().free

    def _note(self, room: Room) -> None:
        self.compared.rooms += 1
        self._reported.append((self._number, room.free))

    def _match(self) -> None:
        """Drop reports that fit what the directory says now, perhaps without recent changes."""
        while self._changes and self._changes[0][0] < self._number - WINDOW:
            self._changes.popleft()
        left = deque[tuple[int, Pages]]()
        free = self._free()
        for number, reported in self._reported:
            if self._fits(free, reported):
                continue
            if number < self._number - WINDOW:
                self.compared.differing.append(
                    f"entry {number}: the directory reported {dict(reported)} free pages, and "
                    f"the simulated one has {free}"
                )
            else:
                left.append((number, reported))
        self._reported = left

    def _fits(self, free: Pages, reported: Pages) -> bool:
        missing = {id: free[id] - pages for id, pages in reported.items() if id in free}
        if not any(missing.values()):
            return True
        changes = [change for _, change in self._changes]
        return any(
            all(sum(each.get(id, 0) for each in some) == pages for id, pages in missing.items())
            for count in range(1, UNDER_WAY + 1)
            for some in combinations(changes, count)
        )

    def _announce(self, shard: Shard) -> None:
        if shard.pages:
            self._directory.announce(shard.id, shard.peer.name, shard.pages, shard.page_tokens, ())

    def _adopt(self, request: str, cached: tuple[CachedRun, ...]) -> None:
        """Cache pages that the live directory found: answers fill pages too, unseen here."""
        hashes = self._works[request].hashes
        for run in cached:
            mine, hashes = hashes[: run.pages], hashes[run.pages :]
            if run.on_disk:
                continue
            new = [each for each in mine if not self._directory.find([each])]
            if run.shard in self._free() and new:
                self._directory.cache.add(run.shard, new)

    def _reserve(self, request: str) -> None:
        lease = self._leases[request]
        places, page_tokens = lease.plan.placements, lease.plan.prefix.page_tokens
        hashes = self._works[request].hashes
        shared = shared_hashes(places, hashes, page_tokens)
        from_disk = hashes_from_disk(places, hashes, page_tokens)
        self._directory.reserve(
            request, lease.epoch, places, shared, restore=True, from_disk=from_disk
        )
        if from_disk:
            self._directory.commit(request, lease.epoch, from_disk)
        lease.is_granted = True

    def _extend(self, request: str, room: Room) -> None:
        """Add pages as `services/scheduler/growth.py` does: those of a step, or one."""
        lease, work = self._leases[request], self._works[request]
        place, page_tokens = lease.plan.placements[-1], lease.plan.prefix.page_tokens
        most = pages_for(place.span.tokens + work.max_tokens, page_tokens)
        step = pages_for(work.first_tokens, page_tokens)
        pages = max(1, min(step, most - place.pages - lease.grown))
        free = self._free().get(place.shard, 0)
        if free < pages or free - 1 == room.free.get(place.shard):
            pages = 1
        lease.grown += pages
        try:
            self._directory.extend(request, lease.epoch, place.shard, pages)
        except ServiceError as error:
            self.compared.differing.append(f"entry {self._number}: {error}")

    def _commit(self, request: str) -> None:
        lease = self._leases[request]
        plan, page_tokens = lease.plan, lease.plan.prefix.page_tokens
        hashes = self._works[request].hashes[: plan.chunk.stop // page_tokens]
        if hashes and lease.is_granted:
            own = own_hashes(plan.placements, hashes, page_tokens)
            self._directory.commit(request, lease.epoch, own)

    def _release(self, request: str) -> None:
        lease = self._leases.pop(request, None)
        if lease is not None:
            self._directory.release(request, lease.epoch)
