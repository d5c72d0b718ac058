"""A workload that can be sent at any rate, whole or in part."""

from functools import cache
from math import log

from msgspec.structs import replace

from sps2.cli.workload.requests import Turn, Workload
from sps2.common.errors import Invalid

LEAST = 20
"""Requests of a workload that can be planned for."""
WARM_UP = 4
"""The first of so many parts of the requests is a warm-up."""


class Load:
    """A workload's requests. Equal requests come at every rate; only their times are stretched.

    Raises:
        Invalid: there are too few requests, or they all come at once.
    """

    def __init__(self, workload: Workload) -> None:
        if len(workload.turns) < LEAST:
            raise Invalid(
                f"{workload.name} has {len(workload.turns)} requests: a plan needs {LEAST} at "
                "least, and a thousand for narrow intervals"
            )
        self.name = workload.name
        self.turns = tuple(workload.turns)
        self.block_tokens = workload.block_tokens
        self.starts = _starts(self.turns)
        """Requests that do not wait for an answer."""
        if not _span_s(self.turns):
            raise Invalid(
                f"all requests of {workload.name} come at once: give --burstiness 1, so that their "
                "times are drawn"
            )
        self.rate = self.starts / _span_s(self.turns)
        """What `at` makes of `rate` by default."""
        self.longest = max(turn.prompt_tokens for turn in self.turns)
        self.cached = _cached(self.turns, self.block_tokens)
        """Prompt tokens of each request that an endless prefix cache would have."""
        self._part = cache(self._chosen)

    @property
    def unit(self) -> str:
        """Of rates."""
        return "requests/s" if self.starts == len(self.turns) else "sessions/s"

    def at(self, rate: float, requests: int | None = None) -> Workload:
        """The workload at so many requests (of sessions: their first ones) per second on average.

        Args:
            requests: only so many that follow one another.
        """
        turns = self._part(min(requests or len(self.turns), len(self.turns)))
        span_s, first_s = _span_s(turns), turns[0].at_s
        factor = _starts(turns) / span_s / rate if span_s else 1.0
        moved = [replace(turn, at_s=(turn.at_s - first_s) * factor) for turn in turns]
        return Workload(self.name, moved, self.block_tokens)

    def warm_up(self, requests: int) -> int:
        """How many of so many requests find a cluster that is emptier than later on. Those of
        sessions are spread over all of the time."""
        return requests // WARM_UP if self.starts == len(self.turns) else 0

    def _chosen(self, count: int) -> tuple[Turn, ...]:
        """The part whose lengths are most like the whole's. Requests that build on earlier ones
        begin with the first."""
        turns = self.turns
        if count == len(turns) or self.starts < len(turns) or any(turn.blocks for turn in turns):
            return turns[:count]
        whole = _lengths(turns)
        starts = range(0, len(turns) - count + 1, max(1, count // 4))

        def distance(start: int) -> float:
            part = _lengths(turns[start : start + count])
            return sum(abs(log(a / b)) for a, b in zip(part, whole, strict=True))

        best = min(starts, key=distance)
        return turns[best : best + count]


def _starts(turns: tuple[Turn, ...]) -> int:
    sessions, count = set[str](), 0
    for turn in turns:
        count += turn.think_s is None or turn.session not in sessions
        if turn.session:
            sessions.add(turn.session)
    return count


def _span_s(turns: tuple[Turn, ...]) -> float:
    return max(turn.at_s for turn in turns) - turns[0].at_s


def _lengths(turns: tuple[Turn, ...]) -> tuple[float, float, float]:
    """Mean prompt, root mean square of it, and mean answer."""
    prompts = [turn.prompt_tokens for turn in turns]
    answers = sum(turn.answer_tokens for turn in turns) / len(turns)
    squares = sum(each * each for each in prompts) / len(turns)
    return sum(prompts) / len(turns), squares**0.5, answers


def _cached(turns: tuple[Turn, ...], block_tokens: int) -> list[int]:
    seen, found = set[int](), []
    for turn in turns:
        shared = 0
        for block in turn.blocks:
            if block not in seen:
                break
            shared += block_tokens
        found.append(min(shared, turn.prompt_tokens - 1))
        seen.update(turn.blocks)
    return found
