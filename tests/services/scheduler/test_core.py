"""The scheduler's decisions, driven by events and a clock alone."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.common.config import Scheduler, Sharing
from sps2.common.errors import Invalid, Refused
from sps2.common.messages import Peer, PrefillOptions, Role, Room, Shard
from sps2.services.scheduler.actions import Action, Launch, Reject
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import (
    Ended,
    Granted,
    Joined,
    Lost,
    Prefilled,
    Returned,
    RoomSeen,
    Submitted,
)
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.fleet_status import statuses
from sps2.services.scheduler.plan import Work
from sps2.services.scheduler.policies.fcfs import Fcfs
from sps2.services.scheduler.schemes import Schemes

from ..world import tiny_config

SHARING = Sharing(gflops=10.0, link_latency_s=0.0)
"""With which many shards are worth it for few tokens."""
PAGE = 16
CONFIG = tiny_config()


def shard(role: Role, index: int, pages: int = 0, life: int = 0) -> Shard:
    name = f"{role}-{index}"
    peer = Peer(f"{name}/{life}", f"tcp://127.0.0.1:{index}", bytes(16))
    return Shard(name, role, index, "tcp://x", peer, pages, PAGE if pages else 0)


def cluster(
    prefill: int = 2,
    decode: int = 2,
    pages: int = 64,
    max_queue: int = 8,
    sharing: Sharing = SHARING,
) -> Core:
    configured = Scheduler(prefill_span_tokens=64, decode_span_tokens=128)
    schemes = Schemes(CONFIG, 2, sharing)
    core = Core(Fcfs(configured, schemes), Fleet(prefill, decode), max_queue)
    for index in range(prefill):
        core.handle(Joined(shard("prefill", index)), 0)
    for index in range(decode):
        core.handle(Joined(shard("decode", index, pages)), 0)
    core.handle(RoomSeen(room(decode, pages)), 0)
    return core


def room(decode: int, pages: int) -> Room:
    each = {f"decode-{index}": pages for index in range(decode)}
    return Room(dict(each), dict(each))


def submit(
    core: Core, request: str, prompt: int, answer: int = 16, sp: int | None = None
) -> list[Action]:
    return core.handle(Submitted(Work(request, prompt, answer, PrefillOptions(sp_degree=sp))), 0)


def launched(actions: list[Action]) -> Launch:
    (action,) = actions
    assert isinstance(action, Launch)
    return action


def rejected(actions: list[Action]) -> Reject:
    (action,) = actions
    assert isinstance(action, Reject)
    return action


def test_sp_degree_and_spread_follow_the_prompts_length() -> None:
    short = launched(submit(cluster(), "r", 60)).plan
    assert (len(short.group), len(short.placements)) == (1, 1)
    long = launched(submit(cluster(), "r", 300)).plan
    assert (len(long.group), len(long.placements)) == (2, 2)
    assert [place.span.tokens for place in long.placements] == [144, 156]


def test_a_forced_sp_degree_is_taken_or_refused_by_name() -> None:
    assert len(launched(submit(cluster(), "r", 60, sp=2)).plan.group) == 2
    error = rejected(submit(cluster(), "r", 60, sp=3)).error
    assert isinstance(error, Invalid)
    assert (error.field, error.code) == ("sps2.sp_degree", "invalid_value")
    assert str(error) == "sp_degree 3 is more than the cluster's 2 prefill shards"
    error = rejected(submit(cluster(1, 1), "r", 60, sp=3)).error
    assert str(error) == "sp_degree 3 is more than the cluster's 1 prefill shard"


def test_one_is_told_in_the_singular() -> None:
    core = cluster(1, 1, max_queue=1)
    core.handle(Lost("decode-0", "decode-0/0"), 0)
    assert core.fleet.waiting_for() == "1 of 1 decode shard"
    submit(core, "a", 60)
    error = rejected(submit(core, "b", 60)).error
    assert str(error) == "the queue is full (1 request waiting); retry later"


def test_a_prompt_over_the_kv_pools_has_a_code() -> None:
    error = rejected(submit(cluster(1, 1, pages=2), "r", 60)).error
    assert isinstance(error, Invalid)
    assert error.code == "context_length_exceeded"


def test_a_prompt_shorter_than_the_group_leaves_ranks_out() -> None:
    plan = launched(submit(cluster(), "r", 1, sp=2)).plan
    assert len(plan.group) == len(plan.partition.spans) == 1


def test_prefill_shards_run_one_request_each_in_order_of_arrival() -> None:
    core = cluster()
    launched(submit(core, "long", 300))
    assert submit(core, "second", 60) == []
    assert submit(core, "third", 60) == []
    core.handle(Granted("long", room(2, 64)), 0)
    actions = core.handle(Prefilled("long"), 0)
    assert [action.request for action in actions] == ["second", "third"]


def test_short_prompts_share_a_shard_where_none_is_idle() -> None:
    core = cluster(prefill=1)
    for request in "abcdefgh":
        assert launched(submit(core, request, 30)).plan.group == ("prefill-0",)
    assert submit(core, "too many", 30) == []
    assert submit(core, "next", 2) == [], "nobody is overtaken"
    assert [each.request for each in core.handle(Ended("b"), 0)] == ["too many", "next"]


def test_long_prompts_have_a_shard_to_themselves() -> None:
    core = cluster(prefill=1)
    launched(submit(core, "long", 33))
    assert submit(core, "short", 2) == []
    core = cluster(prefill=1)
    launched(submit(core, "short", 2))
    assert submit(core, "long", 33) == []


def test_an_idle_shard_is_better_than_one_that_can_be_joined() -> None:
    core = cluster()
    groups = [launched(submit(core, request, size)).plan.group for request, size in SIZES.items()]
    assert groups == [("prefill-0",), ("prefill-1",), ("prefill-1",)]


SIZES = {"a": 30, "b": 9, "c": 30}


def test_requests_wait_for_pages_that_are_on_their_way_out() -> None:
    core = cluster(decode=1, pages=10)
    launched(submit(core, "a", 64, 64))
    assert submit(core, "b", 64, 64) == []
    assert core.handle(Granted("a", Room({"decode-0": 2}, {"decode-0": 10})), 0) == []
    assert core.handle(Prefilled("a"), 0) == []
    core.handle(Ended("a"), 0)
    assert launched(core.handle(RoomSeen(room(1, 10)), 0)).request == "b"


def test_what_can_never_fit_is_an_error_at_once() -> None:
    error = rejected(submit(cluster(decode=2, pages=4), "r", 100, 100)).error
    assert isinstance(error, Invalid)
    assert "kv.pool_tokens" in str(error)


def test_an_incomplete_cluster_waits_instead() -> None:
    core = cluster(decode=2, pages=4)
    core.handle(Lost("decode-1", "decode-1/0"), 0)
    core.handle(RoomSeen(room(1, 4)), 0)
    assert submit(core, "r", 60, 16) == []
    core.handle(Joined(shard("decode", 1, 4, life=1)), 0)
    assert launched(core.handle(RoomSeen(room(2, 4)), 0)).request == "r"


def test_the_queue_is_bounded() -> None:
    core = cluster(max_queue=2)
    for name in ("a", "b", "c"):
        submit(core, name, 300)
    error = rejected(submit(core, "d", 300)).error
    assert isinstance(error, Refused)


def test_an_answer_that_has_begun_is_queued_even_if_the_queue_is_full() -> None:
    """Its client has the beginning, and cannot ask again for the rest."""
    core = cluster(1, 1, max_queue=1)
    launched(submit(core, "a", 60))
    assert submit(core, "b", 60) == []
    rest = Work("c.1", 60, 16, resumes=True)
    assert core.handle(Submitted(rest), 0) == []
    assert isinstance(rejected(submit(core, "d", 60)).error, Refused)
    assert launched(core.handle(Prefilled("a"), 0)).request == "c.1"


def test_a_returned_request_runs_again_first_in_a_new_epoch() -> None:
    core = cluster()
    submit(core, "a", 300)
    submit(core, "b", 300)
    core.handle(Lost("prefill-1", "prefill-1/0"), 0)
    again = launched(core.handle(Returned("a"), 0))
    assert (again.request, again.epoch, again.plan.group) == ("a", 1, ("prefill-0",))


def test_a_loss_of_an_older_life_is_no_loss() -> None:
    core = cluster()
    core.handle(Joined(shard("prefill", 0, life=1)), 0)
    core.handle(Lost("prefill-0", "prefill-0/0"), 0)
    assert {status.state for status in statuses(core.fleet)} == {"ready"}
    core.handle(Lost("prefill-0", "prefill-0/1"), 0)
    assert [status.id for status in statuses(core.fleet) if status.state == "lost"] == ["prefill-0"]
    assert "1 of 2 prefill" in core.fleet.waiting_for()


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 100)), min_size=1, max_size=12))
@settings(deadline=None)
def test_everything_that_fits_runs_in_the_end(sizes: list[tuple[int, int]]) -> None:
    core = cluster(pages=64, max_queue=100)
    free = dict(room(2, 64).free)
    pending = [
        action
        for index, (prompt, answer) in enumerate(sizes)
        for action in submit(core, str(index), prompt, answer)
    ]
    ended = []
    while pending:
        action = pending.pop(0)
        assert isinstance(action, Launch)
        for place in action.plan.placements:
            free[place.shard] -= place.pages
        assert min(free.values()) >= 0
        left = Room(dict(free), room(2, 64).total)
        pending += core.handle(Granted(action.request, left), 0)
        pending += core.handle(Prefilled(action.request), 0)
        for place in action.plan.placements:
            free[place.shard] += place.pages
        ended.append(action.request)
        pending += core.handle(RoomSeen(Room(dict(free), room(2, 64).total)), 0)
        pending += core.handle(Ended(action.request), 0)
    assert ended == [str(index) for index in range(len(sizes))]
    assert not core.requests(0)
