"""Whatever a policy decides, the core stays sound, and only the request concerned fails."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from sps2.common.config import Scheduler
from sps2.common.errors import Internal
from sps2.common.messages import CachedRun, Placement
from sps2.common.spans import Span
from sps2.services.scheduler.cached_prefix import Prefix
from sps2.services.scheduler.chunks import Chunks, each
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.decisions import Decision, Hold, LookUp, Refuse, Start, Urge
from sps2.services.scheduler.events import Ended, Granted, Joined, Parted, RoomSeen, Tick
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.placing import Placing
from sps2.services.scheduler.plan import Plan, Wait
from sps2.services.scheduler.request import Request
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.view import View

from .test_core import CONFIG, SHARING, launched, rejected, room, shard, submit

Spoil = Callable[[Plan], Plan]


class Spoiled:
    """Plans as others do, then spoils each plan of a request whose name begins with "bad"."""

    def __init__(self, spoil: Spoil) -> None:
        settings = Scheduler(prefill_span_tokens=64, decode_span_tokens=128)
        schemes = Schemes(CONFIG, 2, SHARING)
        self.placing, self.chunks = Placing(settings, schemes), Chunks(schemes, each(0), 64)
        self._spoil = spoil

    def precedes(self, view: View, other: Request, request: Request) -> bool:
        return False

    def decide(self, view: View) -> Iterator[Decision]:
        for request in view.waiting():
            decision = view.consider(request, self)
            if isinstance(decision, Start) and request.id.startswith("bad"):
                decision = Start(request.id, self._spoil(decision.plan))
            yield decision


def cluster(spoil: Spoil) -> Core:
    core = Core(Spoiled(spoil), Fleet(2, 2), 8)
    for index in range(2):
        core.handle(Joined(shard("prefill", index)), 0)
        core.handle(Joined(shard("decode", index, 64)), 0)
    core.handle(RoomSeen(room(2, 64)), 0)
    return core


def placed(plan: Plan, **fields: object) -> Plan:
    *others, owner = plan.placements
    changed = Placement(
        *(fields.get(name, getattr(owner, name)) for name in owner.__struct_fields__)
    )
    return replace(plan, placements=(*others, changed))


BROKEN: dict[str, tuple[Spoil, str]] = {
    "no shards": (lambda plan: replace(plan, group=()), "prefill shards"),
    "the same twice": (lambda plan: replace(plan, group=plan.group * 2), "prefill shards"),
    "an absent shard": (lambda plan: replace(plan, group=("prefill-7",)), "prefill shards"),
    "a decode shard": (lambda plan: replace(plan, group=("decode-0",)), "prefill shards"),
    "an absent keeper": (lambda plan: placed(plan, shard="decode-7"), "decode shards"),
    "too few parts": (
        lambda plan: replace(plan, group=("prefill-0", "prefill-1")),
        "2 shards have 1 parts",
    ),
    "a token too few": (
        lambda plan: replace(plan, partition=plan.partition._replace(spans=((Span(0, 59),),))),
        "a chunk ends at 59",
    ),
    "a token twice": (
        lambda plan: replace(
            plan, partition=plan.partition._replace(spans=((Span(0, 40), Span(39, 60)),))
        ),
        "compute each token",
    ),
    "KV that nobody keeps": (lambda plan: placed(plan, span=Span(1, 60)), "keep each token"),
    "a prefix that nobody has": (
        lambda plan: replace(plan, prefix=Prefix((CachedRun("decode-0", 1, 1),), 16)),
        "compute each token",
    ),
    "too few pages": (lambda plan: placed(plan, pages=1), "too few for 76 tokens"),
    "pages that are not free": (lambda plan: placed(plan, pages=65), "no 65 pages"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_plan_that_breaks_a_rule_fails_its_request_alone(name: str) -> None:
    spoil, why = BROKEN[name]
    core = cluster(spoil)
    error = rejected(submit(core, "bad", 60)).error
    assert isinstance(error, Internal)
    assert why in str(error)
    assert core.broken_rules == 1
    assert [pages for _, pages in core.fleet.with_room()] == [64, 64]
    assert launched(submit(core, "good", 60)).request == "good"


def test_pages_are_promised_once() -> None:
    core = cluster(lambda plan: placed(plan, pages=40, shard="decode-0"))
    launched(submit(core, "bad", 60))
    error = rejected(submit(core, "bad too", 60)).error
    assert "no 40 pages" in str(error)


def test_those_who_cannot_reach_each_other_are_not_put_together() -> None:
    core = cluster(
        lambda plan: placed(plan, shard="decode-0") if plan.owner == "decode-1" else plan
    )
    core.handle(Parted("prefill-0/0", "decode-0/0"), 0)
    error = rejected(submit(core, "bad", 60)).error
    assert "decode-0 and prefill-0 cannot reach each other" in str(error)


class Scripted(Spoiled):
    """Decides what the test tells it to, once."""

    def __init__(self) -> None:
        super().__init__(lambda plan: plan)
        self.next: list[Decision | Exception] = []

    def decide(self, view: View) -> Iterator[Decision]:
        while self.next:
            decision = self.next.pop(0)
            if isinstance(decision, Exception):
                raise decision
            yield decision


def scripted() -> tuple[Core, Scripted]:
    policy = Scripted()
    core = Core(policy, Fleet(2, 2), 8)
    for index in range(2):
        core.handle(Joined(shard("prefill", index)), 0)
        core.handle(Joined(shard("decode", index, 64)), 0)
    core.handle(RoomSeen(room(2, 64)), 0)
    return core, policy


@pytest.mark.parametrize(
    "decision",
    [
        LookUp("nobody"),
        Hold("nobody", Wait("room")),
        Refuse("nobody", Internal("no")),
        Urge("nobody", 1.0),
        Urge("waiting", 1.0),
    ],
)
def test_a_decision_about_no_such_request_does_nothing(decision: Decision) -> None:
    core, policy = scripted()
    submit(core, "waiting", 60)
    policy.next = [decision]
    assert core.handle(Tick(), 0) == []
    assert core.broken_rules == 1
    assert [status.stage for status in core.requests(0)] == ["queued"]


def test_a_policy_that_fails_costs_one_request() -> None:
    core, policy = scripted()
    submit(core, "first", 60)
    submit(core, "second", 60)
    policy.next = [ValueError("a bug")]
    reject = rejected(core.handle(Tick(), 0))
    assert reject.request == "first"
    assert "the scheduling policy failed: ValueError('a bug')" in str(reject.error)
    assert [status.request for status in core.requests(0)] == ["second"]


def test_a_policy_that_fails_while_nobody_waits_costs_nobody() -> None:
    core, policy = scripted()
    policy.next = [ValueError("a bug")]
    assert core.handle(Tick(), 0) == []


def test_what_runs_is_not_started_again() -> None:
    plans: list[Plan] = []
    core = cluster(lambda plan: plans.append(plan) or plan)  # type: ignore[func-returns-value]
    launched(submit(core, "bad", 60))
    other, policy = scripted()
    submit(other, "r", 60)
    policy.next = [Start("r", plans[0]), Start("r", plans[0])]
    assert len(other.handle(Tick(), 0)) == 1
    assert other.broken_rules == 1
    other.handle(Granted("r", room(2, 64)), 0)
    policy.next = [Urge("r", 3.0)]
    (change,) = other.handle(Tick(), 0)
    assert other.urgency("r") == 3.0
    other.handle(Ended("r"), 0)
    assert not other.requests(0)
    del change
