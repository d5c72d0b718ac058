"""Metrics and traces of a real cluster: every query finds a series, every request its time."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from sps2.common.client import Client
from sps2.common.messages import Trace, TraceSpan
from sps2.common.tracing import accounted

from ..terminal import terminal
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
    """The metrics once they show that; what is told in heartbeats comes a moment later."""
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


PAGE = 32
"""Tokens, by default."""
CACHED = (TOKENS - 1) // PAGE * PAGE
"""What the second request finds of the first: whole pages, without the last token."""
DEPOSITED = (3 * TOKENS - CACHED) * 3 * 2 * 2 * 16 * 4
"""Bytes of KV of what was computed: 3 layers, K and V, 2 heads of 16, float32."""


def has_reported(samples: list[Sample]) -> bool:
    """Whether every process has reported all that was asked of the cluster.

    Each process reports in its own heartbeats, so that some numbers arrive before others.
    """
    computed = total(samples, "sps2_prefill_tokens_total")
    return (
        total(samples, "sps2_up") == 7
        and abs(computed + CACHED - 3 * TOKENS) < 0.5
        and total(samples, "sps2_decode_tokens_total") == 3 * 19
        and total(samples, "sps2_prefix_cache_hits_total") == CACHED
        and total(samples, "sps2_prefix_cache_pages") > 0
        and total(samples, "sps2_num_requests_running") == 0
        and total(samples, "sps2_request_queue_time_seconds_count") == 3
        and total(samples, "sps2_kv_pages_used") == 0
        and total(samples, "sps2_shards") == 4
        and total(samples, "sps2_csa_blocks_total") > 0
        and all(sent_by_kind(samples).values())
        and deposited(samples, "sent", "prefill") >= DEPOSITED
        and deposited(samples, "received", "decode") == deposited(samples, "sent", "prefill")
    )


def sent_by_kind(samples: list[Sample]) -> dict[str, float]:
    kinds = ("exchange_kv", "exchange_probe", "deposit", "decode_q", "decode_state")
    return {kind: total(samples, "sps2_sent_bytes_total", kind=kind) for kind in kinds}


def deposited(samples: list[Sample], way: str, role: str) -> float:
    return total(samples, f"sps2_{way}_bytes_total", kind="deposit", role=role)


def test_every_process_is_there_with_what_it_did(used: Running) -> None:
    samples = until(used, has_reported)
    up = {(each.labels["role"], each.labels["shard"]) for each in samples if each.name == "sps2_up"}
    services = {(name, "") for name in ("gateway", "scheduler", "kvdir")}
    assert up == services | {(shard.partition("-")[0], shard) for shard in SHARDS}
    assert deposited(samples, "sent", "prefill") == sent_by_kind(samples)["deposit"]
    assert (
        0 < total(samples, "sps2_csa_kept_blocks_total") <= total(samples, "sps2_csa_blocks_total")
    )
    assert total(samples, "sps2_kv_leaked_pages") == 0
    assert total(samples, "sps2_exchange_hidden_seconds_total") <= total(
        samples, "sps2_exchange_seconds_total"
    )
    assert total(samples, "sps2_shards_expected") == 4


def queries() -> list[tuple[str, str]]:
    """(where, query) of every panel and every alert."""
    dashboard = json.loads((COMPOSE / "grafana/dashboards/sps2.json").read_text())
    found = [
        (
            panel["title"],
            target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*"),
        )
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
    samples = [*until(used, has_reported), SCRAPED]
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


TRACED = [sys.executable, "-m", "sps2.cli.main", "trace"]
ATTEMPTS = 6
"""A machine that pauses between two services is not what is tested."""


def traced(cluster: Running, salt: str) -> tuple[Trace, float]:
    """The trace of a long request, and how long that took for its client."""
    body = {
        "prompt": [3 + 3 * index % 380 for index in range(7000)],
        "max_tokens": 60,
        "ignore_eos": True,
        "cache_salt": salt,
        "sps2": {"sp_degree": 2, "method": "ring"},
    }
    with httpx.Client(timeout=PATIENCE_S) as http:
        since_s = time.monotonic()
        answer = http.post(f"{cluster.url}/v1/completions", json=body)
        took_s = time.monotonic() - since_s
    assert answer.status_code == 200, answer.text
    command = [*TRACED, answer.headers["x-request-id"], "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    trace = msgspec.json.decode(done.stdout, type=Trace)
    assert trace.request == answer.json()["id"]
    assert trace.spans[0].stop_s <= took_s
    return trace, took_s


def test_a_trace_accounts_for_the_time_of_its_request(used: Running) -> None:
    found = []
    for attempt in range(ATTEMPTS):
        trace, took_s = traced(used, f"trace-{attempt}")
        share = accounted(trace)
        found.append((share, trace.spans[0].stop_s / took_s))
        if share >= 0.95:
            break
    assert max(found)[0] >= 0.95, found
    assert not trace.missing
    assert {clock.error_s for clock in trace.clocks} == {0.0}, "all have this host's clock"

    by_id = {each.id: each for each in trace.spans}
    by_name: dict[tuple[str, str], list[TraceSpan]] = {}
    for each in trace.spans[1:]:
        by_name.setdefault((each.service, each.name), []).append(each)
        assert each.parent in by_id, "whatever a service did is a part of the request"
        assert not each.is_open
    for name in ("queue", "lease", "join", "prefill", "transfer", "commit", "decode"):
        assert ("scheduler", name) in by_name
    for name in ("tokenise", "detokenise", "totals"):
        assert ("gateway", name) in by_name
    for shard in SHARDS[:2]:
        (prefill,) = by_name[shard, "prefill"]
        assert by_id[prefill.parent].name == "prefill"
        assert (shard, "deposit") in by_name
        for layer in range(3):
            (own,) = by_name[shard, f"layer {layer}"]
            assert own.parent == prefill.id
            assert 0 < float(own.detail["compute_s"]) <= own.stop_s - own.start_s
            assert float(own.detail["exchange_s"]) > 0
        for part in ("compute", "await", "send"):
            assert by_name[shard, part]
    receivers = {service for service, name in by_name if name == "take KV"}
    assert receivers == {*SHARDS[2:]}
    steps = [
        int(float(each.detail["steps"]))
        for (_, name), parts in by_name.items()
        for each in parts
        if name.startswith("tokens ")
    ]
    assert sum(steps) == 59


@pytest.mark.parametrize("width", [80, 200])
def test_what_spsctl_trace_shows(used: Running, width: int, tmp_path: Path) -> None:
    trace, _ = traced(used, f"shown-{width}")
    with terminal([*TRACED, trace.request], width, 50) as screen:
        assert screen.wait() == 0
        text = "\n".join(screen.rows)
    assert "7,000 + 60 tokens" in text
    assert "accounted for" in text
    rows = [row.split()[:2] for row in screen.rows if row.strip()]
    for shard in SHARDS[:2]:
        assert [shard, "prefill"] in rows
    for name in ("queue", "prefill", "transfer", "decode"):
        assert ["scheduler", name] in rows
    assert any(each in text for each in "━═")
    assert ("SP 2" in text) == (width == 200)

    with terminal(TRACED, width, 50) as screen:
        assert screen.wait() == 0
        assert any(trace.request in row and " ok" in row for row in screen.rows)

    file = tmp_path / "trace.json"
    done = subprocess.run(
        [*TRACED, trace.request, "--perfetto", str(file)], capture_output=True, text=True
    )
    assert str(file) in done.stdout
    drawn = [each for each in json.loads(file.read_text())["traceEvents"] if each["ph"] == "X"]
    assert len(drawn) == len(trace.spans)


def test_a_request_that_nobody_knows_is_an_error(used: Running) -> None:
    done = subprocess.run([*TRACED, "cmpl-none"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "no trace of a request 'cmpl-none'" in done.stderr
