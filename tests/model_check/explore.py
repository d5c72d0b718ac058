"""Tries all orders of what may happen in a small cluster: `python -m tests.model_check.explore`.

Breadth first, so that the trace of a violation is a shortest one. States that differ only in
counters and names of processes count as the same.
"""

import argparse
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .pool import Broken
from .world import Step, World

FAIR_STEPS = 400
"""More than any fair schedule takes to end all requests."""


@dataclass
class Violation(Exception):
    """What must not be, and how it came about."""

    why: str
    trace: list[str]

    def __str__(self) -> str:
        return "\n".join([self.why, *(f"    {step}" for step in self.trace)])


@dataclass
class Explored:
    """How much was tried; `is_all` is false if the bound came first."""

    states: int
    transitions: int
    is_all: bool


def explore(world: World, most_states: int) -> Explored:
    """Try all orders from a world on, up to a number of different states.

    Raises:
        Violation: an invariant is broken, or requests hang.
    """
    seen = {key_of(world)}
    waiting = deque([(world, ())])
    transitions = 0
    while waiting:
        here, trace = waiting.popleft()
        check(here, trace)
        for number, (step, _) in enumerate(_checked(here.steps, trace)):
            transitions += 1
            there = here.copy()
            after = (*trace, step)
            _do(there, number, after)
            if (key := key_of(there)) not in seen:
                seen.add(key)
                waiting.append((there, after))
                if len(seen) >= most_states:
                    return Explored(len(seen), transitions, False)
    return Explored(len(seen), transitions, True)


def check(world: World, trace: tuple[str, ...]) -> None:
    """Raise Violation unless all invariants hold, and a fair schedule ends all requests."""
    if wrong := [*_wrong(world)]:
        raise Violation(wrong[0], list(trace))
    later = world.copy()
    steps: list[str] = []
    while deliveries := _checked(later.deliveries, (*trace, *steps)):
        if len(steps) == FAIR_STEPS:
            raise Violation("requests hang", [*trace, "and then", *steps[-30:]])
        # messages before the passing of time, and in turn
        name, happen = deliveries[len(steps) % max(1, len(deliveries) - _ticks(deliveries))]
        steps.append(name)
        try:
            happen()
        except Exception as error:
            raise Violation(repr(error), [*trace, *steps]) from error
        if wrong := [*_wrong(later)]:
            raise Violation(wrong[0], [*trace, *steps])
    if not later.is_over:
        raise Violation("requests hang", [*trace, "and then", *steps])
    if left := [*_left(later)]:
        raise Violation(left[0], [*trace, "and then", *steps])


def _ticks(deliveries: list[Step]) -> int:
    return sum(name == "time passes" for name, _ in deliveries)


def _checked(steps: Callable[[], Iterator[Step]], trace: tuple[str, ...]) -> list[Step]:
    """What may come next; the world itself notices some violations."""
    try:
        return [*steps()]
    except Broken as error:
        raise Violation(str(error), list(trace)) from error


def _do(world: World, number: int, trace: tuple[str, ...]) -> None:
    try:
        [*world.steps()][number][1]()
    except Exception as error:
        raise Violation(repr(error), list(trace)) from error


def _wrong(world: World) -> Iterator[str]:
    """What is wrong with a state, in words."""
    core, directory = world.core, world.directory
    for shard, pool in directory._pools.items():
        leased = sum(
            grant.pages(place)
            for grant in directory._grants.values()
            for place in grant.placements
            if place.shard == shard
        )
        if leased != directory._leased[shard]:
            yield f"{leased} pages of {shard} are leased, and {directory._leased[shard]} counted"
        stray = sum(held for key, held in pool.holdings.items() if key not in directory._grants)
        if stray != pool.stray:
            yield f"{stray} pages of {shard} are stray, and {pool.stray} counted"
    for there in world.pools.values():
        if there.free < 0:
            yield f"{there.id} holds {there.pages - there.free} of {there.pages} pages: one twice"
    queued = {id for id, request in core._requests.items() if request.plan is None}
    if queued != {*core._queue} or len(queued) != len(core._queue):
        yield f"{sorted(queued)} have no plan, and {sorted(core._queue)} are queued"
    for id, member in core.fleet.members.items():
        for request in member.requests:
            known = core._requests.get(request)
            if known is None or known.plan is None or id not in known.plan.shards:
                yield f"{id} works for {request}, which does not run there"


def _left(world: World) -> Iterator[str]:
    """What is left when all requests have ended, in words."""
    core, directory = world.core, world.directory
    if core._requests or core._prefilling or any(core.fleet._taken.values()):
        yield f"the core remembers {core._requests} and promises {core.fleet._promised}"
    if directory._grants:
        yield f"leases are left: {[*directory._grants]}"
    if directory.cache._references:
        yield "cached pages are in use"
    room = directory.room()
    if room.free != room.total or len(room.total) != 2:
        yield f"pages are lost: free {room.free} of {room.total}"


def key_of(world: World) -> tuple[Any, ...]:
    """What makes a state different from others."""
    core, fleet, cache = world.core, world.core.fleet, world.directory.cache
    requests = [
        (
            request.id,
            request.epoch,
            request.stage,
            request.plan and (request.plan.group, request.plan.placements),
            request.cached,
            request.is_finding,
            request.is_shareable,
            request.losses,
            request.held_at == fleet.changes_for(request.wait.cause if request.wait else ""),
            request.rests_until_s > world.now_s,
        )
        for request in core._requests.values()
    ]
    jobs = [
        (
            *(job.id, job.stage, job.epoch, job.replans, job.is_leased, job.is_shared, job.finds),
            *sorted(job.lives.items()),
        )
        for job in world.jobs.values()
    ]
    pools = [
        (
            *(pool.is_alive, pool.is_member, pool.is_announced, pool.life),
            *sorted(pool.held.items()),
            *(tuple(sorted(each)) for each in (pool.cached, pool.news, pool.evicted, pool.leaving)),
        )
        for pool in world.pools.values()
    ]
    directory = [
        *(
            (key, grant.committed, tuple(grant.own))
            for key, grant in world.directory._grants.items()
        ),
        *sorted(cache._shard.items()),
        *sorted(cache._references.items()),
    ]
    return (
        tuple(requests),
        tuple(core._queue),
        tuple(sorted(fleet._promised)),
        tuple(sorted(fleet.room.free.items())),
        tuple(jobs),
        tuple(pools),
        tuple(map(repr, directory)),
        (tuple(sorted(world.unleased)), world.room_is_old, world.deaths, world.cancels),
    )


DEATHS = ("prefill-0", "decode-0", "directory")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.model_check.explore", description=__doc__
    )
    parser.add_argument("--states", type=int, default=100_000, help="at most, for each death")
    parser.add_argument("--policy", default="sps2")
    arguments = parser.parse_args()
    for death in DEATHS:
        since_s = time.monotonic()
        try:
            found = explore(World(arguments.policy, (death,), 1), arguments.states)
        except Violation as violation:
            print(f"death of {death}: {violation}")
            return 1
        print(f"death of {death}: {found} in {time.monotonic() - since_s:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
