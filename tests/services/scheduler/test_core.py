"""The scheduler's decisions, driven by events and a clock alone."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.common.config import Scheduler, Sharing
from sps2.common.errors import Invalid, Refused
from sps2.common.messages import CachedRun, Peer, PrefillOptions, Role, Room, Shard
from sps2.common.spans import Span
from sps2.services.scheduler.actions import Action, Find, Launch, Reject
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import (
    Ended,
    Found,
    Granted,
    Joined,
    Lost,
    Prefilled,
    Returned,
    RoomSeen,
    Shareable,
    Submitted,
)
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.plan import Work
from sps2.services.scheduler.policies.fcfs import Fcfs
from sps2.services.scheduler.schemes import Schemes

from ..world import tiny_config

PAGE = 16
CONFIG = tiny_config()


def shard(role: Role, index: int, pages: int = 0, life: int = 0) -> Shard:
    name = f"{role}-{index}"
    peer = Peer(f"{name}/{life}", f"tcp://127.0.0.1:{index}", bytes(16))
    return Shard(name, role, index, "tcp://x", peer, pages, PAGE if pages else 0)


def cluster(
    prefill: int = 2, decode: int = 2, pages: int = 64, max_queue: int = 8, link_gbit: float = 10.0
) -> Core:
    configured = Scheduler(prefill_span_tokens=64, decode_span_tokens=128)
    schemes = Schemes(CONFIG, 2, Sharing(link_gbit=link_gbit))
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
    assert str(error) == "a request is waiting already; retry later"


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
    assert {status.state for status in core.shards()} == {"ready"}
    core.handle(Lost("prefill-0", "prefill-0/1"), 0)
    assert [status.id for status in core.shards() if status.state == "lost"] == ["prefill-0"]
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


def ask(core: Core, request: str, names: str, tokens: int | None = None) -> list[Action]:
    """Submit a prompt of full pages, one a letter, and so many tokens more."""
    prompt = PAGE * len(names) + (1 if tokens is None else tokens)
    pages = tuple(names[: count + 1].encode() for count in range(len(names)))
    return core.handle(Submitted(Work(request, prompt, 16, hashes=pages)), 0)


def found(core: Core, request: str, *runs: CachedRun) -> list[Action]:
    return core.handle(Found(request, runs), 0)


def sought(actions: list[Action]) -> list[str]:
    assert all(isinstance(action, Find) for action in actions)
    return [action.request for action in actions]


def test_only_what_is_not_cached_is_computed_and_placed() -> None:
    core = cluster(link_gbit=1000.0)
    assert sought(ask(core, "r", "abcdefgh", 20)) == ["r"]
    runs = (CachedRun("decode-1", 2, 2), CachedRun("decode-0", 1, 0), CachedRun("decode-1", 1, 1))
    plan = launched(found(core, "r", *runs)).plan
    assert plan.prefix.tokens == 4 * PAGE
    (first_rank,), (last_rank,) = plan.partition.spans
    assert (first_rank.start, last_rank.stop) == (64, 148)
    assert first_rank.stop == last_rank.start
    first, owner = plan.placements
    assert (first.shard, first.span, first.pages) == ("decode-1", Span(64, 64), 0)
    assert first.shared == (Span(0, 32), Span(48, 64))
    assert (owner.shard, owner.span, owner.pages) == ("decode-0", Span(64, 148), 7)
    assert owner.shared == (Span(32, 48),)
    assert plan.takes == {"decode-0": 7, "decode-1": 3}
    assert plan.partition.predicted_bytes["prefix_q"] == 2 * 84 * 3 * 6 * 16 * 2


def test_cached_pages_that_cost_more_than_they_save_are_not_used() -> None:
    """Queries of all new tokens would go to the shard that has them, and states come back."""
    pages = "abcdefgh" * 4
    for cached, link_gbit, used in ((1, 10.0, 0), (1, 1e6, 1), (30, 10.0, 30)):
        core = cluster(link_gbit=link_gbit)
        ask(core, "r", pages)
        plan = launched(found(core, "r", CachedRun("decode-0", cached, cached))).plan
        assert plan.prefix.pages == used


def test_a_token_is_left_and_lost_shards_are_left_out() -> None:
    core = cluster()
    ask(core, "whole", "abcd", 0)
    assert launched(found(core, "whole", CachedRun("decode-0", 4, 4))).plan.prefix.pages == 3
    core = cluster()
    core.handle(Lost("decode-1", "decode-1/0"), 0)
    ask(core, "r", "abcd")
    runs = (CachedRun("decode-0", 1, 1), CachedRun("decode-1", 1, 1), CachedRun("decode-0", 1, 1))
    assert launched(found(core, "r", *runs)).plan.prefix.pages == 1


def test_a_prefix_that_leaves_no_room_is_computed_again() -> None:
    core = cluster(decode=2, pages=8)
    core.handle(RoomSeen(Room({"decode-0": 3, "decode-1": 8}, room(2, 8).total)), 0)
    ask(core, "r", "abcdef")
    plan = launched(found(core, "r", CachedRun("decode-0", 6, 6))).plan
    assert (plan.prefix.pages, plan.owner) == (0, "decode-1")


def test_requests_wait_for_a_prefix_that_is_computed_now() -> None:
    core = cluster(prefill=4)
    ask(core, "first", "abcdefgh")
    for request in ("second", "third"):
        assert sought(ask(core, request, "abcdefghi"[:-1])) == []
    launched(found(core, "first"))
    core.handle(Granted("first", room(2, 64)), 0)
    assert sought(ask(core, "other", "xyz")) == ["other"], "others pass"
    launched(found(core, "other"))
    assert core.handle(Prefilled("first"), 0) == []
    assert sought(core.handle(Shareable("first"), 0)) == ["second"]
    pages = CachedRun("decode-0", 8, 0)
    launch, *more = found(core, "second", pages)
    assert isinstance(launch, Launch)
    assert launch.plan.prefix.pages == 8
    assert sought(more) == ["third"]


def test_nobody_waits_for_a_long_prompt_to_save_a_little() -> None:
    core = cluster(prefill=4)
    ask(core, "long", "abcdefgh")
    launched(found(core, "long"))
    assert sought(ask(core, "short", "abc")) == ["short"]
    assert sought(ask(core, "longer", "abcdxy")) == []
    launched(found(core, "short"))
    assert core.handle(Ended("short"), 0) == []
    core.handle(Granted("long", room(2, 64)), 0)
    core.handle(Prefilled("long"), 0)
    assert sought(core.handle(Ended("long"), 0)) == ["longer"], "it ended without its pages kept"


def test_who_waits_goes_on_when_the_first_fails() -> None:
    core = cluster(prefill=4)
    ask(core, "first", "abcd")
    launched(found(core, "first"))
    ask(core, "second", "abcd")
    assert sought(core.handle(Ended("first"), 0)) == ["second"]
    assert launched(found(core, "second")).request == "second"


def test_what_failed_twice_computes_all_by_itself() -> None:
    core = cluster()
    ask(core, "r", "abcd")
    launched(found(core, "r", CachedRun("decode-0", 4, 4)))
    assert sought(core.handle(Returned("r"), 0)) == ["r"]
    launched(found(core, "r", CachedRun("decode-0", 4, 4)))
    assert launched(core.handle(Returned("r"), 0)).plan.prefix.pages == 0


prompts = st.text("ab", min_size=1, max_size=6)
steps = st.lists(st.tuples(st.sampled_from(["submit", "end", "step", "return"]), prompts))


@given(steps)
@settings(deadline=None)
def test_nothing_hangs_whatever_shares_a_prefix(script: list[tuple[str, str]]) -> None:
    """A request that is not launched has a lookup under way, or waits for one that is launched."""
    core = cluster(prefill=2, decode=1, pages=10_000, max_queue=1000)
    state: dict[str, str] = {}

    def take(actions: list[Action]) -> None:
        for action in actions:
            assert not isinstance(action, Reject)
            state[action.request] = "found" if isinstance(action, Find) else "granted"

    def advance(request: str) -> None:
        stage = state[request]
        if stage == "found":
            state[request] = "queued"
            take(found(core, request))
        elif stage == "granted":
            state[request] = "prefilled"
            take(core.handle(Granted(request, room(1, 10_000)), 0))
        elif stage == "prefilled":
            state[request] = "shareable"
            take(core.handle(Prefilled(request), 0))
        elif stage == "shareable":
            state[request] = "ended"
            take(core.handle(Shareable(request), 0))
        elif stage == "ended":
            del state[request]
            take(core.handle(Ended(request), 0))

    for number, (step, prompt) in enumerate(script):
        if step == "submit":
            state[str(number)] = "queued"
            take(ask(core, str(number), prompt))
            continue
        chosen = next((key for key in state if (len(key) + number) % 2 or step == "step"), None)
        if chosen is None:
            continue
        if step == "step":
            advance(chosen)
        elif step == "end":
            del state[chosen]
            take(core.handle(Ended(chosen), 0))
        elif state[chosen] in ("granted", "prefilled", "shareable"):
            state[chosen] = "queued"
            take(core.handle(Returned(chosen), 0))
    for _ in range(10 * len(script) + 1):
        for request in list(state):
            if request in state:
                advance(request)
    assert not state
    assert not core.requests(0)
