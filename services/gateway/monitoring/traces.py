"""One trace per answer: records the gateway's part, and collects all parts on request."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sps2.common.api.answer_ids import name_in
from sps2.common.bus.peer import Peer
from sps2.common.errors import Invalid, ServiceError
from sps2.common.messages import (
    Clock,
    Recall,
    ShowFleet,
    Trace,
    Traces,
    TraceSpan,
    TraceSummary,
)
from sps2.common.tracing import Context, Note, Recorder, Trail
from sps2.services.compatibility import compare
from sps2.services.gateway.correlation_ids import Caller
from sps2.services.gateway.http.problems import ErrorReport, NotReady
from sps2.services.gateway.shards import Shards

DEADLINE_S = 2.0
REFUSALS = range(400, 499)
"""Statuses of requests for which nothing was computed."""
CLOCK_READS = 3
"""How often a service's clock is read: the quickest answer is the most precise."""

Part = tuple[Clock, tuple[TraceSpan, ...]]
Ended = Callable[[str, Context, bool], None]
"""Called for every answer that has ended: its name, its context, whether that is the caller's."""


class AnswerTraces:
    """The traces of the last answers.

    Args:
        recorder: records the gateway's part.
    """

    def __init__(self, recorder: Recorder, scheduler: Peer, shards: Shards) -> None:
        self.ended: Ended = lambda name, context, is_callers: None
        self._recorder = recorder
        self._scheduler = scheduler
        self._shards = shards

    @contextmanager
    def answer(self, name: str, prefix: str, caller: Caller) -> Iterator[Trail]:
        """Record the block as the span of a whole answer.

        Args:
            prefix: the part of the answer's id before its name.
        """
        trail = self._recorder.trail(name, caller.traceparent)
        whole = trail.begin("request", id=f"{prefix}{name}", trace_id=trail.context.trace_id)
        if caller.request_id:
            whole.annotate(asked_as=caller.request_id)
        try:
            yield whole
        except (asyncio.CancelledError, GeneratorExit):
            whole.annotate(error="cancelled")
            raise
        except Exception as error:
            report = ErrorReport(error)
            whole.annotate(error=report.message)
            if isinstance(error, NotReady) or report.status in REFUSALS:
                self._recorder.refuse(name)
            raise
        finally:
            whole.end()
            self.ended(name, trail.context, bool(trail.context.span))

    def listed(self) -> Traces:
        """The traces that are kept, the last answer first."""
        now_s = time.monotonic()
        return Traces(tuple(_summary(note, now_s) for _, note in self._wholes()))

    async def show(self, request: str) -> Trace:
        """Collect all parts of a trace, with times by the gateway's clock.

        Raises:
            Invalid: no trace of this request is kept.
        """
        name, whole = self._find(request)
        own = await self._recorder.recall(Recall(name))
        (services, parts), missing = await self._others(name), list[str]()
        clocks = [Clock(self._recorder.service, 0.0, 0.0)]
        spans = [*own.spans]
        for service, part in zip(services, parts, strict=True):
            if part is None:
                missing.append(service)
            elif part[1]:
                clocks.append(part[0])
                spans += part[1]
        ago_s = time.monotonic() - whole.start_s
        return Trace(
            str(whole.detail["id"]),
            str(whole.detail["trace_id"]),
            time.time() - ago_s,
            tuple(_shifted(each, -whole.start_s) for each in spans),
            tuple(clocks),
            tuple(missing),
        )

    def _wholes(self) -> list[tuple[str, Note]]:
        return [
            (name, page[0]) for name, page in self._recorder.notes() if isinstance(page[0], Note)
        ]

    def _find(self, request: str) -> tuple[str, Note]:
        wholes = self._wholes()
        wanted = name_in(request)
        for name, whole in wholes:
            if name == wanted or request == whole.detail.get("asked_as"):
                return name, whole
        there = f"there are {len(wholes)}" if len(wholes) > 1 else "there is 1 of another"
        raise Invalid(
            f"there is no trace of a request {request[:80]!r}; "
            + (f"{there}, see `spsctl trace`" if wholes else "no request was traced yet"),
            "request",
            "request_not_found",
        )

    async def _others(self, name: str) -> tuple[list[str], list[Part | None]]:
        """The other services, and the part that each answered; None if it did not answer."""
        peers = {"scheduler": self._scheduler}
        try:
            fleet = await self._scheduler.call(ShowFleet(), DEADLINE_S)
        except ServiceError:
            return ["scheduler"], [None]
        silent = []
        for shard in fleet.shards:
            if shard.address:
                peers[shard.id] = self._shards.at(shard.address, shard.id)
            else:
                silent.append(shard.id)
        parts = await asyncio.gather(*(_ask(*each, name) for each in peers.items()))
        return [*peers, *silent], [*parts, *[None] * len(silent)]


async def _ask(service: str, peer: Peer, name: str) -> Part | None:
    try:
        clock = await _clock(service, peer)
        spans = (await peer.call(Recall(name), DEADLINE_S)).spans
    except ServiceError:
        return None
    return clock, tuple(_shifted(each, clock.offset_s) for each in spans)


async def _clock(service: str, peer: Peer) -> Clock:
    """The offset of a service's clock.

    If it is within the error of the measurement, the service counts as using this host's clock.
    """
    found = [await compare(peer, "gateway", DEADLINE_S) for _ in range(CLOCK_READS)]
    best = min(found, key=lambda clocks: clocks.error_s)
    if abs(best.monotonic_s) <= best.error_s:
        return Clock(service, 0.0, 0.0)
    return Clock(service, -best.monotonic_s, best.error_s)


def _shifted(each: TraceSpan, by_s: float) -> TraceSpan:
    return TraceSpan(
        each.id,
        each.parent,
        each.name,
        each.start_s + by_s,
        each.stop_s + by_s,
        each.busy_s,
        each.is_open,
        each.service,
        each.detail,
    )


def _summary(whole: Note, now_s: float) -> TraceSummary:
    detail = whole.detail

    def number(name: str) -> float | None:
        value = detail.get(name)
        return None if value is None else float(value)

    prompt_tokens, tokens = number("prompt_tokens"), number("tokens")
    return TraceSummary(
        str(detail["id"]),
        str(detail.get("asked_as", "")),
        now_s - whole.start_s,
        (now_s if whole.stop_s is None else whole.stop_s) - whole.start_s,
        whole.stop_s is None,
        None if prompt_tokens is None else int(prompt_tokens),
        None if tokens is None else int(tokens),
        number("ttft_s"),
        str(detail.get("error", "")),
    )
