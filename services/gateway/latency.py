"""Measures time to first token, time between tokens, and the stages of one choice."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sps2.common.messages import FinishReason
from sps2.common.tracing import Trail
from sps2.services.gateway.generate import Job, Record
from sps2.services.gateway.monitoring.request_metrics import Metrics


class TokenPace:
    """Measures one choice, from now on.

    Args:
        record: the job's record, filled in while it runs.
        trail: records the last stages of the choice.
    """

    def __init__(self, metrics: Metrics, job: Job, record: Record, trail: Trail) -> None:
        self._metrics = metrics
        self._job = job
        self._record = record
        self._trail = trail
        self._turned_s = 0.0
        self._submitted_s = time.monotonic()
        self._first_s = 0.0
        self._last_s = record.since_s

    @contextmanager
    def token(self) -> Iterator[None]:
        """Measure a token that arrived; the block turns it into text."""
        now_s = time.monotonic()
        metrics = self._metrics
        if self._first_s:
            metrics.next_token(now_s - self._last_s)
        else:
            self._first_s = now_s
            self._record.ttft_s = now_s - self._record.since_s
            metrics.first_token(self._record.ttft_s)
        self._last_s = now_s
        metrics.generation_tokens.inc()
        yield
        self._turned_s += time.monotonic() - now_s

    def ended(self, reason: FinishReason) -> None:
        """Record the stages of a choice whose last token came."""
        metrics, record, job = self._metrics, self._record, self._job
        queued_s = record.placed.queued_s if record.placed else 0.0
        begun_s = self._submitted_s + queued_s
        decode_s = self._last_s - self._first_s
        metrics.success.labels(reason).inc()
        metrics.queue.observe(queued_s)
        metrics.prefill.observe(max(0.0, self._first_s - begun_s))
        metrics.decode.observe(decode_s)
        metrics.inference.observe(max(0.0, self._last_s - begun_s))
        if record.tokens > 1:
            metrics.per_token.observe(decode_s / (record.tokens - 1))
        metrics.prompt.observe(len(job.prompt))
        metrics.answer.observe(0 if job.silent else record.tokens)
        metrics.max_tokens.observe(job.sampling.max_tokens)

    def closed(self) -> None:
        """Add the last spans: all totals have arrived, or nobody waits for them."""
        self._trail.add(
            "detokenise", self._first_s, self._last_s, self._turned_s, tokens=self._record.tokens
        )
        self._trail.add("totals", self._last_s, time.monotonic())
