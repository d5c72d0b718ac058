"""The gateway's own metrics for Prometheus; names and meanings follow vLLM's where possible."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from sps2.common.api.usage import Usage
from sps2.common.errors import Cancelled, Invalid, PeerLost, Refused
from sps2.common.messages import FinishReason
from sps2.services.gateway.http.problems import NotReady, TooLarge, Unsupported
from sps2.services.gateway.monitoring.recent import Recent

log = logging.getLogger(__name__)

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5)
_TOKENS = tuple(float(factor * 10**power) for power in range(6) for factor in (1, 2, 5))
_CHOICES = (1, 2, 4, 8, 16)
_ENDS = ("ok", "invalid", "refused", "lost", "cancelled", "error")
_STATUS: dict[type[Exception], str] = {
    Invalid: "invalid",
    TooLarge: "invalid",
    Unsupported: "invalid",
    Refused: "refused",
    NotReady: "refused",
    PeerLost: "lost",
    Cancelled: "cancelled",
}


class Named(Collector):
    """The metrics of a registry, each with the label `model_name`, as vLLM has it."""

    def __init__(self, inner: CollectorRegistry, model: str) -> None:
        self._inner = inner
        self._label = {"model_name": model}

    def collect(self) -> Iterator[Metric]:
        for family in self._inner.collect():
            family.samples = [
                sample._replace(labels=self._label | sample.labels) for sample in family.samples
            ]
            yield family


class Build(NamedTuple):
    """The software and the model that run here."""

    version: str = ""
    model: str = ""
    dtype: str = ""
    quantize: str = ""
    fingerprint: str = ""


class Metrics:
    """Counters and histograms of requests, in a registry of their own.

    Args:
        build: labels of a metric; its model is a label of all metrics about requests.
    """

    def __init__(self, build: Build = Build()) -> None:  # noqa: B008
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        about_requests = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(Named(about_requests, build.model))

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"sps2_{name}", text, labels, buckets=buckets, registry=about_requests)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"sps2_{name}", text, labels, registry=about_requests)

        Gauge(
            "sps2_build_info",
            "Always 1; the labels say which version of SPS2 serves which model",
            build._fields,
            registry=self.registry,
        ).labels(*build).set(1)
        self.ready = Gauge(
            "sps2_ready",
            "1 while the cluster takes requests, as /ready says; 0 while it waits for a service "
            "or for shards that it cannot do without",
            registry=self.registry,
        )
        self.http = Counter(
            "sps2_http_requests",
            "HTTP requests answered, refused ones included, by `route` (other: unknown paths), "
            "`method` and `code`, the status; 499: the client left first",
            ("route", "method", "code"),
            registry=self.registry,
        )
        self.http_seconds = Histogram(
            "sps2_http_request_duration_seconds",
            "Seconds from the head of an HTTP request to the end of its answer, by `route`",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.dropped = Counter(
            "sps2_http_connections_dropped",
            "HTTP connections that the gateway ended for what the client did, by `reason`",
            ("reason",),
            registry=self.registry,
        )
        self.requests = counter(
            "requests",
            "Requests for completions, by the `status` they ended with; invalid and refused ones "
            "included",
            "status",
        )
        self.success = counter(
            "request_success",
            "Choices of answers that were completed, by `finished_reason`",
            "finished_reason",
        )
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of completed requests")
        self.generation_tokens = counter("generation_tokens", "Tokens of answers, as they come")
        self.cache_queries = counter(
            "prefix_cache_queries", "Prompt tokens that were looked for in the prefix cache"
        )
        self.cache_hits = counter(
            "prefix_cache_hits", "Prompt tokens that were found in the prefix cache"
        )
        self.traces = Counter(
            "sps2_traces",
            "Traces for the OTLP collector, by `outcome`: sent, failed, or dropped because too "
            "many waited",
            ("outcome",),
            registry=self.registry,
        )
        self.ttft = histogram(
            "time_to_first_token_seconds",
            "Seconds from a request to the first token of each choice",
            _SECONDS,
        )
        self.between = histogram(
            "inter_token_latency_seconds",
            "Seconds between a token of a choice and its next",
            _BETWEEN,
        )
        self.per_token = histogram(
            "request_time_per_output_token_seconds",
            "Mean seconds between the tokens of a choice",
            _BETWEEN,
        )
        self.latency = histogram(
            "e2e_request_latency_seconds",
            "Seconds from a request to the end of its answer",
            _SECONDS,
        )
        self.queue = histogram(
            "request_queue_time_seconds",
            "Seconds that a choice waited for shards and pages",
            _SECONDS,
        )
        self.prefill = histogram(
            "request_prefill_time_seconds",
            "Seconds from the end of a choice's wait to its first token: leases, prefill, the way "
            "to the gateway",
            _SECONDS,
        )
        self.decode = histogram(
            "request_decode_time_seconds",
            "Seconds from a choice's first token to its last",
            _SECONDS,
        )
        self.inference = histogram(
            "request_inference_time_seconds",
            "Seconds from the end of a choice's wait to its last token",
            _SECONDS,
        )
        self.prompt = histogram("request_prompt_tokens", "Tokens of a prompt", _TOKENS)
        self.answer = histogram("request_generation_tokens", "Tokens of a choice", _TOKENS)
        self.max_tokens = histogram(
            "request_params_max_tokens", "Tokens that a choice may have, by its request", _TOKENS
        )
        self.choices = histogram("request_params_n", "Choices of a request", _CHOICES)

        for status in _ENDS:  # so that a rate is 0, not absent, before the first of them
            self.requests.labels(status)
        for reason in get_args(FinishReason):
            self.success.labels(reason)
        self._logged: set[str] = set()
        self._ttft = Recent()
        self._between = Recent()

    def page(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def gauges(self) -> dict[str, float]:
        """The counters of the gateway's heartbeats."""
        return {
            "sps2_requests_total": _total(self.requests),
            "sps2_generation_tokens_total": _total(self.generation_tokens),
            **self._ttft.quantiles("ttft"),
            **self._between.quantiles("tbt"),
        }

    def answered(self, route: str, method: str, code: int, seconds: float) -> None:
        """Count an HTTP request that was answered."""
        self.http.labels(route, method, str(code)).inc()
        self.http_seconds.labels(route).observe(seconds)

    def connection_dropped(self, why: str) -> None:
        """Count a connection that the gateway ended; the first for each reason is logged."""
        count = self.dropped.labels(why)
        if why not in self._logged:
            self._logged.add(why)
            log.warning(
                "an HTTP connection was ended: %s; sps2_http_connections_dropped_total counts more",
                why,
            )
        count.inc()

    def first_token(self, seconds: float) -> None:
        """Observe the time from the request to a choice's first token."""
        self.ttft.observe(seconds)
        self._ttft.add(seconds)

    def next_token(self, seconds: float) -> None:
        """Observe the time from one token of a choice to the next."""
        self.between.observe(seconds)
        self._between.add(seconds)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request by how the block ends, and time it."""
        since_s = time.monotonic()
        status = "error"
        try:
            yield
            status = "ok"
        except (asyncio.CancelledError, GeneratorExit):
            status = "cancelled"
            raise
        except Exception as error:
            status = _STATUS.get(type(error), "error")
            raise
        finally:
            self.requests.labels(status).inc()
            if status == "ok":
                self.latency.observe(time.monotonic() - since_s)

    def spent(self, usage: Usage) -> None:
        """Count the tokens of a request's prompts."""
        self.prompt_tokens.inc(usage.prompt_tokens)
        self.cache_queries.inc(usage.prompt_tokens)
        self.cache_hits.inc(usage.prompt_tokens_details.cached_tokens)


def _total(counter: Counter) -> float:
    return sum(
        sample.value
        for family in counter.collect()
        for sample in family.samples
        if sample.name == f"{family.name}_total"
    )
