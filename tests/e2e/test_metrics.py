"""/metrics of a real cluster: its own parser reads it, and every query finds what it asks for."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from sps2.common.client import Client

from .conftest import Launch, Running

COMPOSE = Path(__file__).parents[2] / "compose"
PATIENCE_S = 60.0
TOKENS = 4200
"""Of a prompt: CSA leaves shorter ones whole."""
SHARDS = ("prefill-0", "prefill-1", "decode-0", "decode-1")
SCRAPED = Sample("up", {"job": "sps2", "instance": "gateway:8000"}, 1.0)
"""What Prometheus adds about the scrape itself."""


@pytest.fixture(scope="module")
def used(launch: Launch) -> Iterator[Running]:
    """A cluster that has answered a few requests: exactly, sparsely and from the cache."""
    with launch("long", "tcp") as running, Client(running.bus) as client:
        prompt = [3 + 7 * index % 380 for index in range(TOKENS)]
        for attention, salt in (("exact", "a"), ("exact", "a"), ("fast", "b")):
            client.complete(
                prompt,
                max_tokens=20,
                ignore_eos=True,
                cache_salt=salt,
                sps2={"sp_degree": 2, "attention": attention},  # type: ignore[typeddict-item]
            )
        yield running


def scraped(cluster: Running) -> list[Sample]:
    text = httpx.get(f"{cluster.url}/metrics").text
    return [each for family in text_string_to_metric_families(text) for each in family.samples]


def until(cluster: Running, shows: Callable[[list[Sample]], bool]) -> list[Sample]:
    """The metrics once they show that; what is told in beats comes a moment later."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not shows(samples := scraped(cluster)):
        assert time.monotonic() < deadline_s, sorted({each.name for each in samples})
        time.sleep(0.2)
    return samples


def total(samples: list[Sample], name: str, **labels: str) -> float:
    return sum(
        each.value
        for each in samples
        if each.name == name and labels.items() <= each.labels.items()
    )


def has_beaten(samples: list[Sample]) -> bool:
    """Whether every process told of all that was asked of the cluster."""
    return (
        total(samples, "sps2_up") == 7
        and total(samples, "sps2_decode_tokens_total") == 3 * 19
        and total(samples, "sps2_prefix_cache_pages") > 0
        and total(samples, "sps2_num_requests_running") == 0
    )


def test_every_process_is_there_with_what_it_did(used: Running) -> None:
    samples = until(used, has_beaten)
    up = {(each.labels["role"], each.labels["shard"]) for each in samples if each.name == "sps2_up"}
    services = {(name, "") for name in ("gateway", "scheduler", "kvdir")}
    assert up == services | {(shard.partition("-")[0], shard) for shard in SHARDS}
    sent = {
        kind: total(samples, "sps2_sent_bytes_total", kind=kind)
        for kind in ("exchange_kv", "exchange_probe", "deposit", "decode_q", "decode_state")
    }
    assert all(sent.values()), sent
    received = total(samples, "sps2_received_bytes_total", kind="deposit", role="decode")
    assert received == sent["deposit"]
    assert total(samples, "sps2_prefill_tokens_total") < 3 * TOKENS, "cached ones are not computed"
    assert (
        0 < total(samples, "sps2_csa_kept_blocks_total") <= total(samples, "sps2_csa_blocks_total")
    )
    assert total(samples, "sps2_kv_pages_used") == total(samples, "sps2_kv_leaked_pages") == 0
    assert total(samples, "sps2_prefix_cache_hits_total") > 0
    assert total(samples, "sps2_request_queue_time_seconds_count") == 3
    assert total(samples, "sps2_exchange_hidden_seconds_total") <= total(
        samples, "sps2_exchange_seconds_total"
    )
    assert total(samples, "sps2_shards") == total(samples, "sps2_shards_expected") == 4


def queries() -> list[tuple[str, str]]:
    """(where, query) of every panel and every alert."""
    dashboard = json.loads((COMPOSE / "grafana/dashboards/sps2.json").read_text())
    found = [
        (panel["title"], target["expr"].replace("$__rate_interval", "1m"))
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]
    rules = yaml.safe_load((COMPOSE / "prometheus/alerts.yml").read_text())
    return found + [
        (rule["alert"], rule["expr"]) for group in rules["groups"] for rule in group["rules"]
    ]


def selectors(query: str) -> list[promql_parser.VectorSelector]:
    """The series that a query asks for."""
    found: list[promql_parser.VectorSelector] = []

    def visit(part: promql_parser.Expr) -> None:
        if isinstance(part, promql_parser.VectorSelector):
            found.append(part)

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def selects(selector: promql_parser.VectorSelector, sample: Sample) -> bool:
    def matches(wanted: promql_parser.Matcher) -> bool:
        value = sample.labels.get(wanted.name, "")
        if wanted.op in (promql_parser.MatchOp.Equal, promql_parser.MatchOp.NotEqual):
            same = value == wanted.value
        else:
            same = bool(re.fullmatch(wanted.value, value))
        return same == (wanted.op in (promql_parser.MatchOp.Equal, promql_parser.MatchOp.Re))

    return sample.name == selector.name and all(map(matches, selector.matchers.matchers))


def test_every_query_of_dashboard_and_alerts_finds_a_series(used: Running) -> None:
    samples = [*until(used, has_beaten), SCRAPED]
    asked = queries()
    assert len(asked) > 60
    for where, query in asked:
        found = selectors(query)
        assert found, f"{where}: {query} asks for nothing"
        for selector in found:
            assert any(selects(selector, each) for each in samples), (
                f"{where}: {selector.prettify()}"
            )


def test_the_scrape_configuration_reads_the_rules_and_the_dashboard_is_provided() -> None:
    scrape = yaml.safe_load((COMPOSE / "prometheus/prometheus.yml").read_text())
    assert scrape["rule_files"] == ["alerts.yml"]
    (job,) = scrape["scrape_configs"]
    assert SCRAPED.labels["job"] == job["job_name"]
    assert SCRAPED.labels["instance"] in job["static_configs"][0]["targets"]
    provisioned = COMPOSE / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioned / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    (provider,) = yaml.safe_load((provisioned / "dashboards/sps2.yml").read_text())["providers"]
    assert source["type"] == "prometheus"
    assert provider["type"] == "file"
