"""What heartbeats tell is in /metrics with labels, for as long as they come."""

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sps2.common.bus.telemetry import Heartbeat, RequestEvent
from sps2.common.config import Bus
from sps2.common.messages import Link
from sps2.services.gateway.monitoring.federation import Federation
from sps2.services.gateway.monitoring.request_metrics import Metrics
from sps2.services.gateway.monitoring.shard_metrics import FAMILIES

Samples = dict[tuple[str, str, str, str], float]


def heartbeat(service: str, links: tuple[Link, ...] = (), **counters: float) -> Heartbeat:
    return Heartbeat(service, 7, 1.0, 1 << 20, counters, "ready", links=links)


def samples(federation: Federation, name: str) -> Samples:
    """By role, shard, rank and the one other label."""
    registry = CollectorRegistry()
    registry.register(federation)
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            if sample.name == name:
                role, shard, rank = (sample.labels.pop(each) for each in ("role", "shard", "rank"))
                found[role, shard, rank, "".join(sample.labels.values())] = sample.value
    return found


def test_who_falls_silent_is_left_out() -> None:
    now_s = [0.0]
    federation = Federation(Bus(heartbeat_s=1.0, missed_heartbeats=3), lambda: now_s[0])
    federation.hear(heartbeat("prefill-0", prefill_tokens=5.0))
    now_s[0] = 2.0
    federation.hear(heartbeat("prefill-1", prefill_tokens=7.0))
    federation.hear(RequestEvent("r", "queued", 0.0))
    both = {("prefill", "prefill-0", "0", ""): 5.0, ("prefill", "prefill-1", "0", ""): 7.0}
    assert samples(federation, "sps2_prefill_tokens_total") == both
    now_s[0] = 3.5
    left = {("prefill", "prefill-1", "0", ""): 1.0}
    assert samples(federation, "sps2_up") == left
    now_s[0] = 60.0
    assert not samples(federation, "sps2_up")


def test_labels_tell_services_shards_and_their_processes_apart() -> None:
    federation = Federation(Bus())
    for service in ("kvdir", "decode-1", "decode-1.1"):
        federation.hear(heartbeat(service, question_sent=3.0, kv_leaked_pages=2.0))
    assert samples(federation, "sps2_sent_bytes_total") == {
        ("kvdir", "", "0", "decode_q"): 3.0,
        ("decode", "decode-1", "0", "decode_q"): 3.0,
        ("decode", "decode-1", "1", "decode_q"): 3.0,
    }


def test_used_pages_are_those_that_are_neither_free_nor_idle() -> None:
    federation = Federation(Bus())
    federation.hear(heartbeat("mixed-0", kv_pages=100.0, kv_pages_free=60.0, kv_pages_idle=30.0))
    shard = ("mixed", "mixed-0", "0", "")
    assert samples(federation, "sps2_kv_pages_used") == {shard: 10.0}
    assert samples(federation, "sps2_kv_cache_usage_perc") == {shard: 0.1}


def test_links_to_the_lives_of_a_shard_are_one() -> None:
    links = tuple(
        Link("prefill-0", target, 5, 1) for target in ("decode-0", "decode-0", "decode-1")
    )
    federation = Federation(Bus())
    federation.hear(heartbeat("prefill-0", links))
    assert samples(federation, "sps2_link_sent_bytes_total") == {
        ("prefill", "prefill-0", "0", "decode-0"): 10.0,
        ("prefill", "prefill-0", "0", "decode-1"): 5.0,
    }


def test_no_name_is_taken_twice_or_has_no_meaning() -> None:
    metrics = Metrics()
    metrics.registry.register(Federation(Bus()))  # raises where a name is taken
    names = [family.name for family in FAMILIES]
    assert len({*names}) == len(names)
    assert all(family.text and family.series for family in FAMILIES)


def test_what_is_counted_is_whole() -> None:
    federation = Federation(Bus())
    federation.hear(heartbeat("prefill-0", prefill_tokens=9537.500000000007, exchange_s=1.25))
    ((_, tokens),) = samples(federation, "sps2_prefill_tokens_total").items()
    ((_, seconds),) = samples(federation, "sps2_exchange_seconds_total").items()
    assert (tokens, seconds) == (9537.0, 1.25)


def test_no_help_leans_on_another_metric() -> None:
    metrics = Metrics()
    metrics.registry.register(Federation(Bus()))
    for family in metrics.registry.collect():
        words = family.documentation
        assert not words.lower().startswith(("of these", "of this")), words
        assert " these" not in words, words
        assert "their ratio" not in words, words


def test_a_heartbeat_that_lacks_a_counter_costs_nobody_the_page() -> None:
    """As of a service of another version."""
    federation = Federation(Bus())
    federation.hear(heartbeat("mixed-0", kv_pages=8.0))
    federation.hear(heartbeat("mixed-1", kv_pages=8.0, kv_pages_free=2.0, kv_pages_idle=2.0))
    assert samples(federation, "sps2_up").keys() == {
        ("mixed", "mixed-0", "0", ""),
        ("mixed", "mixed-1", "0", ""),
    }
