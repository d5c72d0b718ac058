"""What the gateway measures, for Prometheus; names and meanings follow vLLM's where it has them."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from sps2.common.errors import Cancelled, Invalid, PeerLost, Refused
from sps2.common.messages import FinishReason
from sps2.common.usage import Usage
from sps2.services.gateway.recent import Recent

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5)
_TOKENS = tuple(float(factor * 10**power) for power in range(6) for factor in (1, 2, 5))
_CHOICES = (1, 2, 4, 8, 16)
_ENDS = ("ok", "invalid", "refused", "lost", "cancelled", "error")
_STATUS = {Invalid: "invalid", Refused: "refused", PeerLost: "lost", Cancelled: "cancelled"}


class Metrics:
    """Counters and histograms of requests, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"sps2_{name}", text, buckets=buckets, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"sps2_{name}", text, labels, registry=registry)

        self.ready = Gauge("sps2_ready", "1 if every shard is there", registry=registry)
        self.requests = counter("requests", "Requests, by the `status` they ended with", "status")
        self.success = counter(
            "request_success",
            "Choices that were completed, by `finished_reason`",
            "finished_reason",
        )
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of completed requests")
        self.generation_tokens = counter("generation_tokens", "Tokens generated")
        self.cache_queries = counter(
            "prefix_cache_queries", "Prompt tokens that the prefix cache was asked for"
        )
        self.cache_hits = counter("prefix_cache_hits", "Of these, tokens that were cached")
        self.traces = counter(
            "traces",
            "Traces for the collector, by `outcome`; too many at once are dropped",
            "outcome",
        )
        self.ttft = histogram(
            "time_to_first_token_seconds", "From the request to its first token", _SECONDS
        )
        self.between = histogram(
            "inter_token_latency_seconds",
            "Between a token and the next of the same choice",
            _BETWEEN,
        )
        self.per_token = histogram(
            "request_time_per_output_token_seconds", "Mean of these of a choice", _BETWEEN
        )
        self.latency = histogram(
            "e2e_request_latency_seconds", "From the request to its end", _SECONDS
        )
        self.queue = histogram(
            "request_queue_time_seconds", "In the queue for shards and pages", _SECONDS
        )
        self.prefill = histogram(
            "request_prefill_time_seconds",
            "From the end of the queue to the first token: leases, prefill, the way here",
            _SECONDS,
        )
        self.decode = histogram(
            "request_decode_time_seconds", "From the first token to the last", _SECONDS
        )
        self.inference = histogram(
            "request_inference_time_seconds", "From the end of the queue to the last", _SECONDS
        )
        self.prompt = histogram("request_prompt_tokens", "Tokens of a prompt", _TOKENS)
        self.answer = histogram("request_generation_tokens", "Tokens of a choice", _TOKENS)
        self.max_tokens = histogram(
            "request_params_max_tokens", "Tokens that a choice may have", _TOKENS
        )
        self.choices = histogram("request_params_n", "Choices of a request", _CHOICES)

        for status in _ENDS:  # so that a rate is 0, not absent, before the first of them
            self.requests.labels(status)
        for reason in get_args(FinishReason):
            self.success.labels(reason)
        self._ttft = Recent()
        self._between = Recent()

    def page(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def gauges(self) -> dict[str, float]:
        """What the gateway's beats tell."""
        return {
            "sps2_requests_total": _total(self.requests),
            "sps2_generation_tokens_total": _total(self.generation_tokens),
            **self._ttft.quantiles("ttft"),
            **self._between.quantiles("tbt"),
        }

    def first_token(self, seconds: float) -> None:
        """A choice's first token came so long after the request."""
        self.ttft.observe(seconds)
        self._ttft.add(seconds)

    def next_token(self, seconds: float) -> None:
        """A token came so long after the one before it."""
        self.between.observe(seconds)
        self._between.add(seconds)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts a request by how the block ends, and times it."""
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
        """Counts the tokens of a request's prompts."""
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
