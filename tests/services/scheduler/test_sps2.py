"""The default policy: little work goes first, and preempts longer prefills."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from sps2.common.config import Scheduler
from sps2.common.messages import Follower, Peer, PrefillOptions, Room
from sps2.services.scheduler.actions import Action, ChangeUrgency, Launch
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import (
    Ended,
    Granted,
    Joined,
    Prefilled,
    Progressed,
    Returned,
    RoomSeen,
    Submitted,
)
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.plan import Work
from sps2.services.scheduler.policies.sps2 import AGE_S, Sps2
from sps2.services.scheduler.schemes import Schemes

from .test_core import CONFIG, SHARING, launched, room, shard

LONG, SHORT = 4000, 64


def cluster(prefill: int = 2, decode: int = 2, pages: int = 1000, mixed: int = 0) -> Core:
    policy = Sps2(Scheduler(prefill_span_tokens=256), Schemes(CONFIG, 2, SHARING))
    roles = {"mixed": mixed} if mixed else {"prefill": prefill, "decode": decode}
    core = Core(policy, Fleet(**roles), 1000)
    total = {}
    for role, count in roles.items():
        for index in range(count):
            kept = 0 if role == "prefill" else pages
            core.handle(Joined(shard(role, index, kept)), 0)  # type: ignore[arg-type]
            if kept:
                total[f"{role}-{index}"] = pages
    core.handle(RoomSeen(Room(dict(total), dict(total))), 0)
    return core


def ask(
    core: Core, request: str, tokens: int, at_s: float = 0.0, sp: int | None = None, **work: bool
) -> list[Action]:
    options = PrefillOptions(sp_degree=sp)
    return core.handle(Submitted(Work(request, tokens, 16, options, **work)), at_s)


@pytest.mark.parametrize("mixed", [0, 2])
def test_a_short_prompt_starts_beside_a_long_one_and_is_more_urgent(mixed: int) -> None:
    core = cluster(mixed=mixed)
    long = launched(ask(core, "long", LONG))
    short = launched(ask(core, "short", SHORT, at_s=1.0))
    assert len(long.plan.group) == 2
    assert {*short.plan.group} <= {*long.plan.group}
    assert short.urgency > long.urgency


@pytest.mark.parametrize("mixed", [0, 2])
def test_a_long_prompt_starts_beneath_a_short_one(mixed: int) -> None:
    core = cluster(mixed=mixed)
    short = launched(ask(core, "short", SHORT))
    long = launched(ask(core, "long", LONG))
    assert len(long.plan.group) == 2
    assert short.urgency > long.urgency


def test_short_prompts_go_where_the_least_is_ahead() -> None:
    core = cluster()
    launched(ask(core, "long", LONG))
    groups = [launched(ask(core, str(n), 64)).plan.group for n in range(2)]
    assert groups == [("prefill-0",), ("prefill-1",)]


def test_of_two_alike_the_second_waits() -> None:
    core = cluster()
    launched(ask(core, "first", LONG))
    assert ask(core, "second", LONG - 100) == []
    core.handle(Granted("first", room(2, 1000)), 0)
    assert launched(core.handle(Prefilled("first"), 0)).request == "second"


def test_a_shorter_one_goes_first_while_more_of_the_longer_is_left() -> None:
    core = cluster()
    launched(ask(core, "long", 7600))
    core.handle(Granted("long", room(2, 1000)), 0)
    core.handle(Progressed("long", 3000), 1)
    middle = launched(ask(core, "middle", 3000, at_s=1.0))
    assert middle.urgency > core.urgency("long")


def test_one_that_is_nearly_done_is_more_urgent_than_at_its_start() -> None:
    core = cluster()
    before = launched(ask(core, "long", 7600)).urgency
    core.handle(Granted("long", room(2, 1000)), 0)
    assert core.handle(Progressed("long", 2000), 1) == []
    (change,) = core.handle(Progressed("long", 7500), 2)
    assert isinstance(change, ChangeUrgency)
    assert change.urgency == core.urgency("long") > before + 5
    middle = launched(ask(core, "middle", 3000, at_s=2.0))
    assert middle.urgency < core.urgency("long")


def test_age_counts() -> None:
    old = launched(ask(cluster(), "old", LONG, at_s=0.0)).urgency
    new = launched(ask(cluster(), "new", LONG, at_s=3 * AGE_S)).urgency
    assert old - new == pytest.approx(3)


def test_who_resumes_an_answer_goes_first() -> None:
    core = cluster(decode=1, pages=300)
    launched(ask(core, "running", LONG))
    core.handle(Granted("running", Room({"decode-0": 40}, {"decode-0": 300})), 0)
    for request in ("a", "b"):
        assert ask(core, request, LONG) == []
    assert ask(core, "resumes", LONG, resumes=True) == []
    core.handle(Prefilled("running"), 1)
    core.handle(Ended("running"), 1)
    first = launched(core.handle(RoomSeen(room(1, 300)), 1))
    assert first.request == "resumes"


def test_shards_of_several_processes_prefill_one_prompt_after_the_other() -> None:
    core = cluster(prefill=0)
    follower = Follower("tcp://y", Peer("f/0", "tcp://127.0.0.1:9", bytes(16)))
    core.fleet.expected["prefill"] = 1
    core.handle(Joined(structs.replace(shard("prefill", 0), followers=(follower,))), 0)
    launched(ask(core, "long", LONG))
    assert ask(core, "short", SHORT) == []
    core.handle(Granted("long", room(2, 1000)), 0)
    assert launched(core.handle(Prefilled("long"), 0)).request == "short"


@given(
    st.lists(
        st.tuples(st.integers(1, 4000), st.integers(1, 100), st.booleans()), min_size=1, max_size=30
    ),
    st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=50)
def test_every_request_ends_once_and_no_page_is_promised_twice(
    sizes: Sequence[tuple[int, int, bool]], draw: object
) -> None:
    total = room(2, 400).total
    core, free = cluster(pages=400), dict(total)
    running: dict[str, Launch] = {}
    ended: list[str] = []

    def take(actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Launch):
                assert action.request not in running
                running[action.request] = action
                for place in action.plan.placements:
                    free[place.shard] -= place.pages
                assert min(free.values()) >= 0
                take(core.handle(Granted(action.request, Room(dict(free), total)), 0))

    def give_back(request: str) -> None:
        for place in running.pop(request).plan.placements:
            free[place.shard] += place.pages
        take(core.handle(RoomSeen(Room(dict(free), total)), 0))

    for number, (prompt, answer, resumes) in enumerate(sizes):
        take(core.handle(Submitted(Work(str(number), prompt, answer, resumes=resumes)), number))
    returned: set[str] = set()
    while running:
        request = draw.choice(sorted(running))  # type: ignore[attr-defined]
        tokens = running[request].plan.partition.spans[-1][-1].stop
        take(core.handle(Progressed(request, draw.randrange(tokens)), 1))  # type: ignore[attr-defined]
        if request not in returned and draw.random() < 0.3:  # type: ignore[attr-defined]
            returned.add(request)
            give_back(request)
            take(core.handle(Returned(request), 1))
            continue
        take(core.handle(Prefilled(request), 1))
        give_back(request)
        ended.append(request)
        take(core.handle(Ended(request), 1))
    assert sorted(ended, key=int) == [str(number) for number in range(len(sizes))]
    assert not core.requests(0)
    assert core.broken_rules == 0


def test_the_status_tells_what_a_request_waits_for() -> None:
    core = cluster()
    launched(ask(core, "long", LONG))
    launched(ask(core, "short", SHORT))
    ask(core, "other", LONG)
    for request in ("long", "short"):
        core.handle(Granted(request, room(2, 1000)), 0)
    waits = {status.request: status.waits_for for status in core.requests(0)}
    assert waits == {
        "long": "short, which is more urgent",
        "short": "",
        "other": "shards that are free to prefill it",
    }
    core.handle(Prefilled("short"), 0)
    assert not core.requests(0)[0].waits_for
