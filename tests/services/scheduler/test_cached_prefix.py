"""Prompts whose beginning is cached, or is computed for another request now."""

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sps2.common.config import Sharing
from sps2.common.messages import CachedRun, Room
from sps2.common.spans import Span
from sps2.services.scheduler.actions import Action, Find, Launch, Reject
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import (
    Ended,
    Found,
    Granted,
    Lost,
    Prefilled,
    Returned,
    RoomSeen,
    Shareable,
    Submitted,
)
from sps2.services.scheduler.plan import Work

from .test_core import PAGE, SHARING, cluster, launched, room


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
    core = cluster(sharing=replace(SHARING, link_gbit=1000.0))
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
        core = cluster(sharing=Sharing(link_gbit=link_gbit))
        ask(core, "r", pages)
        plan = launched(found(core, "r", CachedRun("decode-0", cached, cached))).plan
        assert plan.prefix.pages == used


def test_a_token_is_left_and_lost_shards_are_left_out() -> None:
    core = cluster()
    ask(core, "whole", "abcd", 0)
    assert launched(found(core, "whole", CachedRun("decode-0", 4, 4))).plan.prefix.pages == 3
    core = cluster(sharing=Sharing(link_gbit=1e6))
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
    assert launched(core.handle(Returned("r"), 5)).plan.prefix.pages == 0


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


def test_one_loss_that_is_reported_twice_counts_once() -> None:
    core = cluster()
    ask(core, "r", "abcd")
    for at_s in (1.0, 1.5):
        launched(found(core, "r", CachedRun("decode-0", 4, 4)))
        assert sought(core.handle(Returned("r"), at_s)) == ["r"], "it still uses cached pages"
