"""What the gateway measures, for Prometheus; names and meanings follow vLLM's where it has them."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from sps2.common.errors import Cancelled, Invalid, PeerLost, Refused
from sps2.common.messages import Leases
from sps2.common.usage import Usage
from sps2.services.gateway.recent import Recent

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5)
_TOLD = (
    "sps2_requests_running",
    "sps2_requests_waiting",
    "sps2_kv_leaked_pages",
    "sps2_generation_tokens_total",
)
_STATUS = {Invalid: "invalid", Refused: "refused", PeerLost: "lost", Cancelled: "cancelled"}


class Metrics:
    """Counters and histograms in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "sps2_requests_total", "Requests by how they ended", ["status"], registry=registry
        )
        self.prompt_tokens = Counter(
            "sps2_prompt_tokens_total", "Prompt tokens of ended requests", registry=registry
        )
        self.generation_tokens = Counter(
            "sps2_generation_tokens_total", "Tokens generated", registry=registry
        )
        self.ttft = Histogram(
            "sps2_time_to_first_token_seconds",
            "From the request to its first token",
            buckets=_SECONDS,
            registry=registry,
        )
        self.between = Histogram(
            "sps2_time_between_tokens_seconds",
            "Between a token and the next of the same choice",
            buckets=_BETWEEN,
            registry=registry,
        )
        self.latency = Histogram(
            "sps2_e2e_request_latency_seconds",
            "From the request to its end",
            buckets=_SECONDS,
            registry=registry,
        )
        self.running = Gauge(
            "sps2_requests_running", "Choices that generate tokens", registry=registry
        )
        self.waiting = Gauge(
            "sps2_requests_waiting", "Choices without a first token", registry=registry
        )
        self.bytes = Counter(
            "sps2_bytes_total", "Tensor bytes moved for requests", ["purpose"], registry=registry
        )
        self.cache_queries = Counter(
            "sps2_prefix_cache_queries_total",
            "Prompt tokens that the prefix cache was asked for",
            registry=registry,
        )
        self.cache_hits = Counter(
            "sps2_prefix_cache_hits_total", "Of these, tokens that were cached", registry=registry
        )
        self.cache_evictions = Counter(
            "sps2_prefix_cache_evicted_pages_total", "KV pages evicted", registry=registry
        )
        self.cached = Gauge("sps2_prefix_cache_pages", "KV pages in the cache", registry=registry)
        self.leaked = Gauge(
            "sps2_kv_leaked_pages", "KV pages held for requests nobody leases", registry=registry
        )

        self._evicted_pages = 0
        self._ttft = Recent()
        self._between = Recent()

    def page(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def gauges(self) -> dict[str, float]:
        """What the gateway's beats tell."""
        values = {name: self.registry.get_sample_value(name) for name in _TOLD}
        ended = sum(
            sample.value
            for family in self.requests.collect()
            for sample in family.samples
            if sample.name == "sps2_requests_total"
        )
        return {
            **{name: value for name, value in values.items() if value is not None},
            "sps2_requests_total": ended,
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
        """Counts the tokens of prompts and the bytes of an answer."""
        self.prompt_tokens.inc(usage.prompt_tokens)
        self.cache_queries.inc(usage.prompt_tokens)
        self.cache_hits.inc(usage.prompt_tokens_details.cached_tokens)
        if usage.sps2 is not None:
            for purpose in ("exchange", "deposit", "q", "state"):
                moved = getattr(usage.sps2, f"{purpose}_bytes")
                self.bytes.labels(purpose).inc(moved or 0)

    def kept(self, leases: Leases) -> None:
        """Takes over what the directory counts."""
        self.leaked.set(leases.leaked_pages)
        self.cached.set(leases.cached_pages)
        # a directory that was restarted counts from 0 again
        new = leases.evicted_pages - self._evicted_pages
        self.cache_evictions.inc(new if new >= 0 else leases.evicted_pages)
        self._evicted_pages = leases.evicted_pages


class Pace:
    """Times the tokens of one choice; a context from submission to end."""

    def __init__(self, metrics: Metrics, since_s: float) -> None:
        self._metrics = metrics
        self._last_s = since_s
        self._begun = False

    def __enter__(self) -> "Pace":
        self._metrics.waiting.inc()
        return self

    def __exit__(self, *_: object) -> None:
        (self._metrics.running if self._begun else self._metrics.waiting).dec()

    def token(self) -> None:
        """A token came."""
        now_s = time.monotonic()
        metrics = self._metrics
        (metrics.next_token if self._begun else metrics.first_token)(now_s - self._last_s)
        if not self._begun:
            metrics.waiting.dec()
            metrics.running.inc()
        self._begun = True
        self._last_s = now_s
        metrics.generation_tokens.inc()
