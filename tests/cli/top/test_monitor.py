"""Events become a picture: rates, states, stages, and what is not known stays unknown."""

import msgspec
import pytest

from sps2.cli.top.monitor import FORGET_S, LINGER_S, Monitor
from sps2.cli.top.snapshot import Link, Picture

from .acts import BUS, NAMES, REQUEST, event, heartbeat, in_prefill, running, status, watched


def test_nothing_is_made_up() -> None:
    picture = Monitor("test", BUS).picture(0.0)
    assert picture.cluster.state == "waiting"
    assert not any((picture.services, picture.shards, picture.requests, picture.links))
    totals = msgspec.structs.asdict(picture.cluster)
    assert all(totals[name] is None for name in totals if name.endswith("_s"))

    once = Monitor("test", BUS)
    once.hear(heartbeat("decode-0", 1), 1.0)
    [shard] = once.picture(1.0).shards
    assert (shard.busy, shard.out_bytes_s, shard.in_bytes_s) == (None, None, None)
    assert (shard.pages, shard.pages_free, shard.owned) == (100, 60, 1)


def test_rates_and_gauges_of_the_cluster() -> None:
    totals = watched().picture(3.0).cluster
    assert (totals.requests_s, totals.tokens_out_s, totals.tokens_in_s) == (2.0, 90.0, 800.0)
    assert (totals.ttft_p99_s, totals.tbt_p50_s) == (1.3, 0.0124)
    assert (totals.queued, totals.running, totals.state) == (1, 3, "ready")
    assert totals.hidden == pytest.approx(0.8)


def test_several_gateways_are_added_up() -> None:
    """Latencies are those of the slowest."""
    monitor = watched()
    for second in (1, 2, 3):
        more = {"ttft_p99_s": 2.5, "sps2_requests_total": 3.0 * second}
        heard = heartbeat("gateway", second)
        told = msgspec.structs.replace(
            heard, service="gateway.1", counters={**heard.counters, **more}
        )
        monitor.hear(told, float(second))
    totals = monitor.picture(3.0).cluster
    assert (totals.requests_s, totals.tokens_out_s) == (5.0, 180.0)
    assert (totals.ttft_p50_s, totals.ttft_p99_s) == (0.42, 2.5)


def test_a_row_for_each_shard() -> None:
    shards = {each.id: each for each in watched().picture(3.0).shards}
    assert list(shards) == ["prefill-0", "prefill-1", "decode-0", "decode-1"]
    one, other = shards["prefill-0"], shards["decode-1"]
    assert (one.role, one.state, one.busy, one.prefilling) == ("prefill", "busy", 0.5, 1)
    assert (one.out_bytes_s, one.in_bytes_s, one.pages) == (3e6, 5e5, None)
    assert (other.busy, other.owned, other.held, other.address) == (0.25, 1, 2, "tcp://decode-1")
    assert (other.in_bytes_s, other.out_bytes_s) == (2e3, 1e3)


def test_a_shard_that_drains_says_so_for_as_long_as_it_lives() -> None:
    monitor, known = watched(), status()
    replaced = msgspec.structs.replace
    for word in ("draining", "drained"):
        shards = tuple(replaced(each, state=word) for each in known.shards)
        monitor.take(replaced(known, shards=shards), 3.0)
        assert {each.state for each in monitor.picture(3.0).shards} == {word}
    monitor.hear(heartbeat("decode-0", 4, state="waiting"), 3.5)
    assert {each.id: each.state for each in monitor.picture(3.5).shards}["decode-0"] == "waiting"


def test_links_by_the_second() -> None:
    assert watched().picture(3.0).links == (
        Link("prefill-0", "decode-0", 9_000_000, 3e6),
        Link("prefill-1", "decode-0", 9_000_000, 3e6),
    )


def test_processes_of_one_shard_are_added_up() -> None:
    monitor = watched()
    for second in (1, 2, 3):
        monitor.hear(heartbeat("prefill-0.1", second), float(second))
    picture = monitor.picture(3.0)
    shard = next(each for each in picture.shards if each.id == "prefill-0")
    assert shard.out_bytes_s == 6e6
    assert picture.links[0] == Link("prefill-0", "decode-0", 18_000_000, 6e6)
    assert len(picture.shards) == 4
    assert "prefill-0.1" in [each.service for each in picture.services]


def test_a_silent_shard_is_lost_and_its_numbers_with_it() -> None:
    monitor = watched()
    for second in range(4, 8):
        for name in NAMES[:-1]:
            monitor.hear(heartbeat(name, second), float(second))
    shards = {each.id: each for each in monitor.picture(7.0).shards}
    assert shards["decode-1"].state == "lost"
    assert (shards["decode-1"].busy, shards["decode-1"].pages) == (None, None)
    assert shards["decode-0"].state == "busy"
    monitor.hear(heartbeat("decode-1", 1, pid=2), 7.0)
    again = {each.id: each for each in monitor.picture(7.0).shards}["decode-1"]
    assert (again.state, again.pid, again.busy) == ("busy", 2, None)  # another life: no rate yet


def test_those_nobody_knows_are_forgotten() -> None:
    monitor = watched()
    monitor.hear(heartbeat("decode-7", 3), 3.0)
    assert len(monitor.picture(3.0).shards) == 5
    assert len(monitor.picture(4.0 + FORGET_S).shards) == 4


def test_clocks_apart_do_not_matter() -> None:
    monitor = Monitor("test", BUS)
    for second in (1, 2, 3):
        monitor.hear(heartbeat("gateway", second + 10_000), float(second))
    assert monitor.picture(3.0).cluster.requests_s == 2.0


def test_a_request_through_its_stages() -> None:
    monitor = watched()
    in_prefill(monitor)
    [request] = monitor.picture(3.5).requests
    assert (request.stage, request.age_s) == ("prefill", 2.5)
    assert (request.processed, request.cached_tokens, request.prompt_tokens) == (3700, 900, 7900)
    assert (request.group, request.holders) == (
        ("prefill-0", "prefill-1"),
        ("decode-0", "decode-1"),
    )
    monitor.hear(event("transfer", exchange_s=2.0, hidden_s=1.0, exchange_bytes=1e6), 4.0)
    monitor.hear(event("decode"), 4.5)
    monitor.hear(heartbeat("decode-1", 4, tokens={REQUEST: 37, "unknown": 1}), 5.0)
    [request] = monitor.picture(5.0).requests
    assert (request.stage, request.tokens, request.max_tokens) == ("decode", 37, 128)
    assert (request.hidden, request.exchange_bytes) == (0.5, 1e6)
    stages = {stage.name: stage.seconds for stage in request.stages}
    assert stages == {
        "queued": 0.5,
        "reserving": 0.5,
        "prefill": 2.0,
        "transfer": 0.5,
        "decode": 0.5,
    }
    monitor.hear(event("ended", error="decode-0 was lost"), 6.0)
    [request] = monitor.picture(7.0).requests
    assert (request.stage, request.age_s, request.error) == ("ended", 5.0, "decode-0 was lost")
    assert not monitor.picture(6.1 + LINGER_S).requests


def test_planned_anew_begins_again() -> None:
    monitor = watched()
    in_prefill(monitor)
    monitor.hear(event("reserving", epoch=1), 4.0)
    [request] = monitor.picture(4.0).requests
    assert (request.stage, request.processed, request.epoch) == ("reserving", None, 1)


def test_what_was_missed_comes_from_the_gateway() -> None:
    monitor = watched()
    monitor.take(status(running(age_s=5.0), running("queued", 1.0, "b" * 16)), 3.0)
    first, second = monitor.picture(4.0).requests
    assert (first.stage, first.age_s, first.prompt_tokens) == ("decode", 6.0, 7900)
    assert (first.group, first.max_tokens) == (("prefill-0", "prefill-1"), 128)
    assert [place.shard for place in first.placements] == ["decode-0", "decode-1"]
    assert (second.stage, second.owner) == ("queued", "")
    monitor.take(status(), 5.0)
    assert {each.stage for each in monitor.picture(5.0).requests} == {"ended"}


def test_the_gateway_does_not_answer() -> None:
    monitor = watched()
    monitor.miss("the gateway at tcp://127.0.0.1:1")
    totals = monitor.picture(3.0).cluster
    assert (totals.state, totals.waiting_for) == ("lost", "the gateway at tcp://127.0.0.1:1")
    monitor.take(status(ready=False), 3.0)
    totals = monitor.picture(3.0).cluster
    assert (totals.state, totals.waiting_for) == ("waiting", "1 of 2 decode shards")
    monitor.take(status(missing="1 of 2 decode shards"), 3.0)
    totals = monitor.picture(3.0).cluster
    assert (totals.state, totals.waiting_for, totals.missing) == (
        "ready",
        "",
        "1 of 2 decode shards",
    )


def test_settled_once_all_rates_are_known() -> None:
    monitor = Monitor("test", BUS)
    monitor.take(status(), 0.0)
    for name in NAMES:
        monitor.hear(heartbeat(name, 1), 1.0)
    assert not monitor.settled()
    for name in NAMES:
        monitor.hear(heartbeat(name, 2), 2.0)
    assert monitor.settled()


def test_the_object_for_scripts() -> None:
    monitor = watched()
    in_prefill(monitor)
    told = msgspec.json.encode(monitor.picture(3.0))
    assert msgspec.json.decode(told, type=Picture) == monitor.picture(3.0)
    found = msgspec.json.decode(told)
    assert {"services", "shards", "requests", "links"} <= found.keys()
    assert {"id", "role", "pid", "address", "state", "pages_free"} <= found["shards"][0].keys()
