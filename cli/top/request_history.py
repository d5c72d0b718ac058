"""The course of one request, from its events and from the scheduler's status."""

from sps2.cli.top.snapshot import Request, Stage
from sps2.common.bus.telemetry import RequestEvent
from sps2.common.messages import Placement, RequestStatus

Detail = dict[str, str | float]


class Course:
    """The course of a request. Times are on the watcher's clock, so that clocks may differ.

    Args:
        since_s: when the request was submitted.
    """

    def __init__(self, request: str, since_s: float) -> None:
        self.ended_s: float | None = None
        self.heard_s = since_s
        """When its last event or status came."""
        self._request = request
        self._since_s = since_s
        self._stages: list[tuple[str, float]] = []
        self._detail: Detail = {}
        self._placements: tuple[Placement, ...] = ()
        self._waits: tuple[str, str] = "", ""
        """A stage, and what it waits for in that."""
        self.tokens: int | None = None

    def hear(self, event: RequestEvent, now_s: float) -> None:
        """Handle an event."""
        self.heard_s = now_s
        if event.stage == "reserving":  # planned, perhaps again: earlier progress is void
            self._detail.pop("processed", None)
            self.tokens = None
        self._detail |= event.detail
        self._enter(event.stage, now_s)
        if event.stage == "ended":
            self.ended_s = now_s

    def take(self, status: RequestStatus, now_s: float) -> None:
        """Handle the scheduler's status, since events may have been missed."""
        self.heard_s = now_s
        self._since_s = min(self._since_s, now_s - status.age_s)
        self._detail |= {"prompt_tokens": status.prompt_tokens, "max_tokens": status.max_tokens}
        if not self._stages or _ORDER[status.stage] > _ORDER[self._stages[-1][0]]:
            self._enter(status.stage, now_s)
        self._waits = status.stage, status.waits_for
        if status.stage == "queued":
            return
        self._detail |= {
            "cached_tokens": status.cached_tokens,
            "epoch": status.epoch,
            "owner": status.owner,
            "group": " ".join(status.group),
            "holders": " ".join(place.shard for place in status.placements),
        }
        self._placements = status.placements

    def end(self, now_s: float) -> None:
        """End the request, whose last event was missed."""
        self._enter("ended", now_s)
        self.ended_s = now_s

    def picture(self, now_s: float) -> Request:
        """The request's state now."""
        end_s = now_s if self.ended_s is None else self.ended_s
        stage = self._stages[-1][0] if self._stages else "queued"
        exchange_s = self._number("exchange_s")
        hidden_s = self._number("hidden_s")
        return Request(
            self._request,
            stage,
            end_s - self._since_s,
            self._durations(end_s),
            self._count("prompt_tokens"),
            self._count("processed"),
            self._count("cached_tokens"),
            self.tokens,
            self._count("max_tokens"),
            self._count("epoch"),
            self._text("owner"),
            tuple(self._text("group").split()),
            tuple(self._text("holders").split()),
            self._text("attention"),
            self._text("method"),
            self._number("exchange_bytes"),
            hidden_s / exchange_s if exchange_s and hidden_s is not None else None,
            self._text("error"),
            self._placements,
            self._waits[1] if self._waits[0] == stage else "",
        )

    def _enter(self, stage: str, now_s: float) -> None:
        if not self._stages or self._stages[-1][0] != stage:
            self._stages.append((stage, now_s))

    def _durations(self, end_s: float) -> tuple[Stage, ...]:
        ends = [at_s for _, at_s in self._stages[1:]] + [end_s]
        return tuple(
            Stage(name, stop_s - at_s)
            for (name, at_s), stop_s in zip(self._stages, ends, strict=True)
            if name != "ended"
        )

    def _text(self, name: str) -> str:
        return str(self._detail.get(name, ""))

    def _number(self, name: str) -> float | None:
        value = self._detail.get(name)
        return None if value is None else float(value)

    def _count(self, name: str) -> int | None:
        value = self._number(name)
        return None if value is None else int(value)


_ORDER = {
    stage: place
    for place, stage in enumerate(("queued", "reserving", "prefill", "transfer", "decode", "ended"))
}
