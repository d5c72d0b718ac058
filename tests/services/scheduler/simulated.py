"""Runs the core in virtual time, with shards that only compute, as `Compute` has them do."""

from collections.abc import Sequence
from typing import NamedTuple

from sps2.common.config import Scheduler, Sharing
from sps2.common.messages import Room
from sps2.services.scheduler.actions import Action, ChangeUrgency, Launch, Proceed
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import (
    Chunked,
    Ended,
    Granted,
    Joined,
    Prefilled,
    Progressed,
    RoomSeen,
    Submitted,
)
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.plan import Plan, Work
from sps2.services.scheduler.policies import POLICIES
from sps2.services.scheduler.schemes import Schemes

from .test_core import CONFIG, shard

SCHEMES = Schemes(CONFIG, 2, Sharing(gflops=0.02))
"""So slow that a prompt of 4,000 tokens takes seconds."""
LEAST_SHARE = 1 / 8


class Arrival(NamedTuple):
    at_s: float
    tokens: int
    caller: str = ""


class _Running:
    """A chunk of a prefill, which may be all of it: seconds left, and its urgency."""

    def __init__(self, plan: Plan, urgency: float) -> None:
        self.plan = plan
        self.whole_s = self.left_s = plan.partition.predicted_s
        self.urgency = urgency

    @property
    def computed(self) -> int:
        """Tokens of the prompt, behind its cached prefix."""
        done = round(self.plan.chunk.tokens * (1 - max(0.0, self.left_s) / self.whole_s))
        before = self.plan.chunk.start - self.plan.prefix.tokens
        return before + min(done, self.plan.chunk.tokens - 1)


def ttfts(
    policy: str, arrivals: Sequence[Arrival], shards: int = 2, chunk_tokens: int = 0
) -> list[float]:
    """Seconds from the arrival of each request to its first token.

    Each moment a shard serves its most urgent prefill, and less urgent ones with `LEAST_SHARE`. A
    prefill goes on at the pace of its slowest shard.
    """
    settings = Scheduler(chunk_tokens=chunk_tokens)
    core = Core(POLICIES[policy](settings, SCHEMES), Fleet(shards, 1), len(arrivals) + 1)
    for index in range(shards):
        core.handle(Joined(shard("prefill", index)), 0.0)
    core.handle(Joined(shard("decode", 0, 100_000)), 0.0)
    room = Room({"decode-0": 100_000}, {"decode-0": 100_000})
    core.handle(RoomSeen(room), 0.0)
    running: dict[str, _Running] = {}
    took: dict[str, float] = {}

    def take(actions: Sequence[Action], now_s: float) -> None:
        for action in actions:
            if isinstance(action, Launch):
                running[action.request] = _Running(action.plan, action.urgency)
                take(core.handle(Granted(action.request, room), now_s), now_s)
            elif isinstance(action, Proceed):
                running[action.request] = _Running(action.plan, action.urgency)
            elif isinstance(action, ChangeUrgency):
                running[action.request].urgency = action.urgency

    def pace(one: _Running) -> float:
        first = {
            shard: max(each.urgency for each in running.values() if shard in each.plan.group)
            for shard in one.plan.group
        }
        return LEAST_SHARE if any(one.urgency < most for most in first.values()) else 1.0

    coming = sorted(range(len(arrivals)), key=lambda number: arrivals[number].at_s)
    now_s, tick_s = 0.0, 0.25
    while len(took) < len(arrivals):
        paces = {request: pace(one) for request, one in running.items()}
        ends = [one.left_s / paces[request] for request, one in running.items()]
        next_s = min([tick_s, *ends, *([arrivals[coming[0]].at_s - now_s] if coming else [])])
        now_s += max(0.0, next_s)
        for request, one in list(running.items()):
            one.left_s -= next_s * paces[request]
            take(core.handle(Progressed(request, one.computed), now_s), now_s)
        for request in [request for request, one in running.items() if one.left_s < 1e-9]:
            stop = running.pop(request).plan.chunk.stop
            if stop < arrivals[int(request)].tokens:
                take(core.handle(Chunked(request), now_s), now_s)
                continue
            took[request] = now_s - arrivals[int(request)].at_s
            take(core.handle(Prefilled(request), now_s), now_s)
            take(core.handle(Ended(request), now_s), now_s)
        while coming and arrivals[coming[0]].at_s <= now_s:
            number = coming.pop(0)
            work = Work(str(number), arrivals[number].tokens, 16, caller=arrivals[number].caller)
            take(core.handle(Submitted(work), now_s), now_s)
    return [took[str(number)] for number in range(len(arrivals))]


def slowdowns(policy: str, arrivals: Sequence[Arrival]) -> list[float]:
    """The time of each against what it takes alone."""
    alone = [ttfts(policy, [Arrival(0.0, each.tokens)])[0] for each in arrivals]
    return [took / least for took, least in zip(ttfts(policy, arrivals), alone, strict=True)]
