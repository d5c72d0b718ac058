"""Records trace spans of a service's last requests in memory."""

import random
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from sps2.common.messages import Recall, Recalled, Trace, TraceSpan

_TRACEPARENT = re.compile("00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_SAMPLED = 1
REFUSED_PART = 4
"""At most one page in this many is of a refused request."""


class Context(NamedTuple):
    """A trace, and the span in it that is the parent of what follows.

    Source: W3C Trace Context, https://www.w3.org/TR/trace-context/.
    """

    trace_id: str
    span: str
    is_sampled: bool = True

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span}-{_SAMPLED * self.is_sampled:02x}"


def context_of(traceparent: str) -> Context | None:
    """Parse a `traceparent`; None if it is malformed or of an unknown version."""
    if not _TRACEPARENT.fullmatch(traceparent):
        return None
    _, trace_id, span, flags = traceparent.split("-")
    return Context(trace_id, span, bool(int(flags, 16) & _SAMPLED))


def new_context() -> Context:
    """A new trace, for a request without a `traceparent`; it has no parent span."""
    return Context(secrets.token_hex(16), "")


@dataclass(slots=True)
class Note:
    """A recorded span; it is open until it has a `stop_s`."""

    id: str
    parent: str
    name: str
    start_s: float
    stop_s: float | None = None
    busy_s: float | None = None
    detail: dict[str, str | float] = field(default_factory=dict)

    def span(self, service: str, now_s: float) -> TraceSpan:
        """The span as a message; an open one stops at `now_s`."""
        return TraceSpan(
            self.id,
            self.parent,
            self.name,
            self.start_s,
            now_s if self.stop_s is None else self.stop_s,
            self.busy_s,
            self.stop_s is None,
            service,
            self.detail,
        )


Later = Callable[[], Iterable[Note]]
"""Makes notes only when they are requested."""
Page = list[Note | Later]
"""All that is recorded of one request."""


class Trail:
    """Records a service's work for a request, as children of one span."""

    def __init__(self, page: Page, context: Context, note: Note | None = None) -> None:
        self.context = context
        self._page = page
        self._note = note

    @property
    def traceparent(self) -> str:
        """The `traceparent` for services that do a part of the work."""
        return str(self.context)

    def begin(self, name: str, **detail: str | float) -> "Trail":
        """Begin a child span now; it is open until its `end`."""
        note = Note(_new_id(), self.context.span, name, time.monotonic())
        note.detail = detail
        self._page.append(note)
        return Trail(self._page, self.context._replace(span=note.id), note)

    def end(self, **detail: str | float) -> None:
        """End the span now; only the first call counts."""
        if self._note is not None and self._note.stop_s is None:
            self._note.stop_s = time.monotonic()
            self._note.detail |= detail

    def annotate(self, **detail: str | float) -> None:
        """Add details to the span."""
        if self._note is not None:
            self._note.detail |= detail

    @contextmanager
    def during(self, name: str, **detail: str | float) -> Iterator["Trail"]:
        """Record the block as a child span."""
        part = self.begin(name, **detail)
        try:
            yield part
        finally:
            part.end()

    def add(
        self,
        name: str,
        start_s: float,
        stop_s: float,
        busy_s: float | None = None,
        **detail: str | float,
    ) -> None:
        """Record a child span with its start and stop."""
        self._page.append(Note(_new_id(), self.context.span, name, start_s, stop_s, busy_s, detail))

    def later(self, make: Callable[[str], Iterable[Note]]) -> None:
        """Add children made by `make` from this span's id, only when the trace is requested."""
        self._page.append(lambda: make(self.context.span))


class Recorder:
    """The pages of a service's last requests; a bus handler.

    Args:
        kept: number of pages; 0 keeps none. At most a quarter of them are of refused requests, so
            that these never push out the rest.
    """

    def __init__(self, service: str, kept: int) -> None:
        self.service = service
        self._kept = kept
        self._pages: OrderedDict[str, Page] = OrderedDict()
        self._refused: OrderedDict[str, None] = OrderedDict()

    def trail(self, request: str, traceparent: str) -> Trail:
        """A trail on the page of `request`, below the span that `traceparent` names."""
        page = self._pages.get(request, [])
        if self._kept:
            self._pages[request] = page
            self._pages.move_to_end(request)
            while len(self._pages) > self._kept:
                oldest, _ = self._pages.popitem(last=False)
                self._refused.pop(oldest, None)
        return Trail(page, context_of(traceparent) or new_context())

    def refuse(self, request: str) -> None:
        """Mark a request as refused: pages of refused requests only push out each other."""
        if request not in self._pages:
            return
        self._refused[request] = None
        while len(self._refused) > max(1, self._kept // REFUSED_PART):
            oldest, _ = self._refused.popitem(last=False)
            self._pages.pop(oldest, None)

    def notes(self) -> list[tuple[str, Page]]:
        """(request, page) of all pages, latest first."""
        return list(reversed(self._pages.items()))

    async def recall(self, request: Recall) -> Recalled:
        """The spans of all requests whose ids begin with the answer's."""
        now_s = time.monotonic()
        found = [
            note.span(self.service, now_s)
            for name, page in list(self._pages.items())
            if name.startswith(request.answer)
            for entry in list(page)
            for note in ([entry] if isinstance(entry, Note) else entry())
        ]
        return Recalled(tuple(found))


def _new_id() -> str:
    return f"{random.getrandbits(64):016x}"  # need not be secure


FORGETFUL = Recorder("", 0)
"""A recorder that keeps nothing."""


def id_of(parent: str, place: object) -> str:
    """A reproducible span id, from its parent and its place."""
    return blake2b(f"{parent}{place}".encode(), digest_size=8).hexdigest()


def accounted(trace: Trace) -> float:
    """The share of a trace's time that spans account for.

    Spans count that have no children and are work from start to end. Overlapping times count
    once, since several services work at the same time.
    """
    whole = trace.spans[0]
    parents = {each.parent for each in trace.spans}
    leaves = [each for each in trace.spans[1:] if each.id not in parents and each.busy_s is None]
    covered = union([(each.start_s, each.stop_s) for each in leaves])
    inside = [
        max(0.0, min(stop, whole.stop_s) - max(start, whole.start_s)) for start, stop in covered
    ]
    return sum(inside) / max(1e-9, whole.stop_s - whole.start_s)


def union(intervals: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Merge overlapping intervals; sorted."""
    found: list[tuple[float, float]] = []
    for start, stop in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], stop))
        else:
            found.append((start, stop))
    return found
