"""The user's choices on the screen, and how keys change them; no I/O."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from sps2.cli.top.snapshot import Picture, Request, Shard

Panel = Literal["all", "shards", "links", "requests"]
PANELS: tuple[Panel, ...] = ("all", "shards", "links", "requests")
STAGES = ("queued", "reserving", "prefill", "transfer", "decode", "ended")

SORTS: dict[str, Callable[[Request], Any]] = {
    "age": lambda each: -each.age_s,
    "prompt": lambda each: -(each.prompt_tokens or 0),
    "stage": lambda each: (STAGES.index(each.stage), -each.age_s),
    "owner": lambda each: (each.owner, -each.age_s),
}
"""Orders of requests; in each, requests that have ended come last."""
ORDERS: dict[str, Callable[[Shard], Any]] = {
    "name": lambda each: 0,  # as they are
    "busy": lambda each: -(each.busy or 0.0),
    "KV": lambda each: -_used(each),
    "traffic": lambda each: -((each.in_bytes_s or 0.0) + (each.out_bytes_s or 0.0)),
}
"""Orders of shards."""
PAGE = 10
FILTER_CHARS = 40


@dataclass(frozen=True)
class Controls:
    """The state of the screen.

    selected: a request; if it is not shown any more, the first counts as selected.
    opened: whether its detail is shown.
    typing: whether keys go to the filter.
    """

    sort: str = "age"
    order: str = "name"
    panel: Panel = "all"
    filter: str = ""
    typing: bool = False
    paused: bool = False
    selected: str = ""
    opened: bool = False
    help: bool = False
    quit: bool = False

    def press(self, key: str, picture: Picture) -> "Controls":
        """The state after a key."""
        if self.typing:
            return self._typed(key)
        if self.help:
            return replace(self, help=False, quit=key == "q")
        match key:
            case "q":
                return replace(self, quit=True)
            case "?" | "h":
                return replace(self, help=True)
            case "/":
                return replace(self, typing=True, opened=False)
            case "p" | " ":
                return replace(self, paused=not self.paused)
            case "s":
                return replace(self, sort=_next(tuple(SORTS), self.sort))
            case "o":
                return replace(self, order=_next(tuple(ORDERS), self.order))
            case "v":
                return replace(self, panel=_next(PANELS, self.panel), opened=False)
            case "escape":
                return replace(self, opened=False) if self.opened else replace(self, filter="")
            case "enter":
                chosen = self.chosen(picture)
                return replace(self, opened=not self.opened, selected=chosen) if chosen else self
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -PAGE, "pagedown": PAGE}
        ends = {"home": -(1 << 30), "g": -(1 << 30), "end": 1 << 30, "G": 1 << 30}
        step = (steps | ends).get(key, 0)
        return self._moved(step, picture) if step else self

    def requests(self, picture: Picture) -> list[Request]:
        """The requests to show, in order."""
        shown = [each for each in picture.requests if self._matches(*_words(each))]
        return sorted(shown, key=lambda each: (each.stage == "ended", SORTS[self.sort](each)))

    def shards(self, picture: Picture) -> list[Shard]:
        """The shards to show, in order: all if the filter matches no shard."""
        shown = [each for each in picture.shards if self._matches(each.id, each.role, each.state)]
        return sorted(shown or picture.shards, key=ORDERS[self.order])

    def chosen(self, picture: Picture) -> str:
        """The selected request; empty if none is shown."""
        names = [each.request for each in self.requests(picture)]
        return self.selected if self.selected in names else names[0] if names else ""

    def _matches(self, *words: str) -> bool:
        return any(self.filter.lower() in word for word in words)

    def _typed(self, key: str) -> "Controls":
        match key:
            case "enter":
                return replace(self, typing=False)
            case "escape":
                return replace(self, typing=False, filter="")
            case "backspace":
                return replace(self, filter=self.filter[:-1])
        if len(key) > 1:
            return self
        return replace(self, filter=(self.filter + key)[:FILTER_CHARS])

    def _moved(self, step: int, picture: Picture) -> "Controls":
        names = [each.request for each in self.requests(picture)]
        if not names:
            return self
        place = names.index(self.chosen(picture)) + step
        return replace(self, selected=names[min(max(place, 0), len(names) - 1)])


def _words(request: Request) -> tuple[str, ...]:
    return (
        request.request,
        request.stage,
        request.owner,
        request.method,
        *request.group,
        *request.holders,
    )


def _used(shard: Shard) -> float:
    if not shard.pages:
        return 0.0
    return 1 - ((shard.pages_free or 0) + (shard.pages_idle or 0)) / shard.pages


def _next(choices: tuple[Any, ...], now: str) -> Any:
    return choices[(choices.index(now) + 1) % len(choices)]
