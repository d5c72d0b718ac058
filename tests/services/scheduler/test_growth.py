"""Answers grow page by page; who came last gives way; all end, whatever the order."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

import pytest

from sps2.common.config import Scheduler
from sps2.common.errors import Refused
from sps2.common.messages import Room
from sps2.services.kvdir.directory import Directory
from sps2.services.scheduler.actions import Action, ChangeUrgency, Launch, Preempt
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.decisions import Decision, Hold, Start, Urge
from sps2.services.scheduler.events import (
    Decoded,
    Ended,
    Event,
    Granted,
    Grew,
    Joined,
    Prefilled,
    Returned,
    RoomSeen,
    Shareable,
    Starved,
    Submitted,
    Tick,
)
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.plan import Plan, Wait, Work
from sps2.services.scheduler.policies import POLICIES
from sps2.services.scheduler.policies.fcfs import Fcfs
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.view import View

from .test_core import CONFIG, PAGE, SHARING, launched, room, shard

GROWTH = 16
POOL = 24
"""Pages of each of two decode shards."""


class Worst(Fcfs):
    """As bad as the rules allow: the last first, urgencies at random, one start at a time."""

    def __init__(self, settings: Scheduler, schemes: Schemes) -> None:
        super().__init__(settings, schemes)
        self._draw = Random(1)

    def decide(self, view: View) -> Iterator[Decision]:
        for prefill in list(view.prefilling.values()):
            yield Urge(prefill.id, self._draw.uniform(-9, 9))
        for request in reversed(view.waiting()):
            if self._draw.random() < 0.7:
                yield Hold(request.id, Wait("turn"))
                continue
            decision = view.consider(request, self)
            yield decision
            if isinstance(decision, Start):
                return


MAKERS = {**POLICIES, "worst": Worst}


def core_of(policy: str, pages: int = POOL) -> Core:
    settings = Scheduler(prefill_span_tokens=64, decode_span_tokens=128)
    core = Core(MAKERS[policy](settings, Schemes(CONFIG, 2, SHARING)), Fleet(2, 2), 64)
    for index in range(2):
        core.handle(Joined(shard("prefill", index)), 0)
        core.handle(Joined(shard("decode", index, pages)), 0)
    core.handle(RoomSeen(room(2, pages)), 0)
    return core


@dataclass
class Answer:
    """An answer that is decoded: `tokens` of `work.max_tokens` so far."""

    work: Work
    plan: Plan
    pages: int
    epoch: int
    tokens: int = 0
    left_steps: int = 3
    """Of its prefill."""

    @property
    def is_full(self) -> bool:
        place = self.plan.placements[-1]
        return place.span.tokens + self.tokens > self.pages * PAGE


class Cluster:
    """Decodes a token of every answer at each step; the directory is the real one."""

    def __init__(self, policy: str) -> None:
        self.core = core_of(policy)
        self.directory = Directory()
        for index in range(2):
            self.directory.announce(f"decode-{index}", f"decode-{index}/0", POOL, PAGE, ())
        self.now_s = 0.0
        self.answers: dict[str, Answer] = {}
        self.works: dict[str, Work] = {}
        self.ended: list[str] = []
        self.preempted: list[str] = []

    def submit(self, work: Work) -> None:
        self.works[work.request] = work
        self.happen(Submitted(work))

    def happen(self, event: Event) -> None:
        self.take(self.core.handle(event, self.now_s))

    def take(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Launch(id, epoch, plan):
                    try:
                        self.directory.reserve(id, epoch, plan.placements)
                    except Refused:
                        self.happen(Returned(id, 0.1))
                        continue
                    pages = plan.placements[-1].pages
                    self.answers[id] = Answer(self.works[id], plan, pages, epoch)
                    self.happen(Granted(id, self.directory.room()))
                case Preempt(id):
                    self.preempted.append(id.rstrip("'"))
                    answer = self.leave(id)
                    tokens, work = answer.tokens, answer.work
                    if not tokens:
                        self.happen(Returned(id, 0.1))
                        continue
                    self.happen(Ended(id))
                    room = answer.pages * PAGE - answer.plan.placements[-1].span.tokens
                    self.submit(
                        replace(
                            work,
                            request=f"{id}'",
                            prompt_tokens=work.prompt_tokens + tokens,
                            max_tokens=work.max_tokens - tokens,
                            resumes=True,
                            reserved_tokens=2 * room,
                        )
                    )
                case ChangeUrgency():
                    pass
                case other:
                    raise AssertionError(other)

    def leave(self, id: str) -> Answer:
        answer = self.answers.pop(id)
        self.directory.release(id, answer.epoch)
        self.happen(RoomSeen(self.directory.room()))
        return answer

    def step(self) -> None:
        self.now_s += 0.1
        for id, answer in list(self.answers.items()):
            if self.answers.get(id) is not answer:
                continue
            if answer.left_steps:
                answer.left_steps -= 1
                if not answer.left_steps:
                    answer.tokens = 1
                    self.happen(Prefilled(id))
                    self.happen(Shareable(id))
            elif answer.is_full:
                self.grow(id, answer)
            elif answer.tokens < answer.work.max_tokens:
                answer.tokens += 1
            if answer.tokens == answer.work.max_tokens and self.answers.get(id) is answer:
                self.happen(Decoded(id, answer.tokens))
                self.leave(id)
                self.happen(Ended(id))
                self.ended.append(id.rstrip("'"))
        self.happen(Tick())

    def grow(self, id: str, answer: Answer) -> None:
        try:
            self.directory.extend(id, answer.epoch, answer.plan.owner, 1)
        except Refused:
            self.happen(Starved(id, 1))
            return
        answer.pages += 1
        self.happen(Grew(id, self.directory.room()))
        self.happen(RoomSeen(self.directory.room()))


@pytest.mark.parametrize("policy", MAKERS)
@pytest.mark.parametrize("seed", range(8))
def test_all_answers_end_on_pools_that_hold_few(policy: str, seed: int) -> None:
    """Each could need more than half of all pages."""
    draw, cluster = Random(seed), Cluster(policy)
    wanted = [f"r{number}" for number in range(16)]
    for request in wanted:
        tokens = draw.randrange(1, 150)
        cluster.submit(Work(request, tokens, draw.randrange(2, 200), reserved_tokens=GROWTH))
        for _ in range(draw.randrange(12)):
            cluster.step()
    for _ in range(4000):
        cluster.step()
    assert sorted(cluster.ended) == sorted(wanted)
    assert cluster.directory.room().free == {"decode-0": POOL, "decode-1": POOL}
    assert [pages for _, pages in cluster.core.fleet.with_room()] == [POOL, POOL]
    assert cluster.preempted
    assert max(Counter(cluster.preempted).values()) <= 5, "the room doubles: 16, 32, 64, 128"
    assert cluster.core.preemptions == len(cluster.preempted)
    assert not cluster.core.requests(0)
    assert cluster.core.broken_rules == 0


def answering(core: Core, request: str, at_s: float = 0.0, **fields: object) -> Plan:
    work = replace(Work(request, 16, 200, reserved_tokens=GROWTH), **fields)  # type: ignore[arg-type]
    launch = launched(core.handle(Submitted(work), at_s))
    free = dict(core.fleet.room.free)
    for place in launch.plan.placements:
        free[place.shard] -= place.pages
    core.handle(Granted(request, Room(free, core.fleet.room.total)), at_s)
    core.handle(Prefilled(request), at_s)
    core.handle(Shareable(request), at_s)
    return launch.plan


def test_a_request_reserves_the_first_tokens_of_its_answer() -> None:
    plan = answering(core_of("sps2"), "r")
    assert [place.pages for place in plan.placements] == [2]


def test_the_last_that_came_gives_way() -> None:
    core = core_of("fcfs")
    owners = {f"r{number}": answering(core, f"r{number}", number).owner for number in range(4)}
    there = [id for id, owner in owners.items() if owner == owners["r0"]]
    assert len(there) == 2
    assert core.handle(Starved("r0", 1), 5) == [Preempt(there[-1])]
    assert core.handle(Starved("r0", 1), 5) == [], "that one is still leaving"
    core.handle(Ended(there[-1]), 5)
    assert core.handle(Starved("r0", 1), 5) == [Preempt("r0")], "it is alone, and has no room"


def test_who_resumed_gives_way_last() -> None:
    core = core_of("fcfs")
    plans = [answering(core, "old", 0.0), answering(core, "b", 1.0)]
    plans += [answering(core, "resumed", 2.0, resumes=True), answering(core, "c", 3.0)]
    assert plans[0].owner == plans[2].owner
    assert core.handle(Starved("old", 1), 5) == [], "the other still has the room that it got"
    assert core.handle(Starved("resumed", 1), 5) == [Preempt("old")]


def test_the_caller_with_most_answers_gives_way() -> None:
    """Although the other one's came last."""
    core = core_of("fcfs")
    for number, caller in enumerate(("flood", "flood", "flood", "flood", "single")):
        answering(core, f"{caller}{number}", number, caller=caller)
    plan = core._requests["single4"].plan
    assert plan is not None
    there = [id for id, each in core._requests.items() if each.uses(plan.owner)]
    assert len(there) == 3
    assert core.handle(Starved(there[0], 1), 5) == [Preempt(there[1])]


def test_priority_counts() -> None:
    core = core_of("fcfs")
    owner = answering(core, "first", 0.0).owner
    for number in range(3):
        answering(core, f"r{number}", 1.0 + number, priority=number)
    there = [id for id, each in core._requests.items() if each.uses(owner)]
    assert len(there) == 2
    assert core.handle(Starved(there[1], 1), 5) == [Preempt("first")]


def test_what_is_prefilled_gives_way_before_its_prefill_is_done() -> None:
    core = core_of("fcfs")
    owner = answering(core, "old").owner
    answering(core, "other")
    for request in ("a", "b"):
        core.handle(Submitted(Work(request, 16, 200, reserved_tokens=GROWTH)), 1.0)
    starting = [id for id in "ab" if core._requests[id].uses(owner)]
    assert len(starting) == 1
    assert core.handle(Starved("old", 1), 5) == [], "it has no lease yet"
    core.handle(Granted(starting[0], core.fleet.room), 5)
    assert core.handle(Starved("old", 1), 5) == [Preempt(starting[0])]
    core.handle(Returned(starting[0], 0.05), 5)
    core.handle(Tick(), 6)
    core.handle(Granted(starting[0], core.fleet.room), 6)
    assert core._requests[starting[0]].is_protected


def test_pages_for_growth_are_not_promised_to_others() -> None:
    core = core_of("fcfs")
    answering(core, "r")
    answering(core, "s")
    owner = core._requests["r"].plan.owner  # type: ignore[union-attr]
    before = core.fleet.free(owner)
    core.handle(Starved("r", 1), 1)
    assert core.fleet.free(owner) == before - 1
    core.handle(Starved("r", 1), 2)
    assert core.fleet.free(owner) == before - 1, "once"
    core.handle(Grew("r", core.fleet.room), 3)
    assert core.fleet.free(owner) == before


def test_the_whole_answer_must_fit_its_owner_in_the_end() -> None:
    core = core_of("fcfs")
    plan = launched(core.handle(Submitted(Work("r", 300, 300, reserved_tokens=16)), 0)).plan
    owner = plan.placements[-1]
    assert owner.span.tokens + 300 <= POOL * PAGE
    assert owner.pages < POOL - 4
