"""Times of requests: their own, stretched to a rate, or drawn."""

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from sps2.cli.workload.arrivals import Arrivals
from sps2.cli.workload.requests import Turn
from sps2.cli.workload.shaping import Shape


@dataclass(frozen=True)
class Timing:
    """When requests arrive.

    arrivals: how times are drawn; None keeps those that a trace has, and draws those of others as
        a Poisson process at 1 per second.
    rate: requests per second, to which the times of a trace are scaled.
    """

    arrivals: Arrivals | None = None
    rate: float | None = None
    seed: int = 0

    def timed(self, turns: Sequence[Turn], shape: Shape, is_timed: bool) -> list[Turn]:
        """The requests at their times, cut by `shape`."""
        arrivals = self.arrivals
        if arrivals is None and not is_timed:
            arrivals = Arrivals(self.rate or 1.0)
        if arrivals is not None:
            return shape.cut(_drawn(turns, arrivals, self.seed))
        kept = shape.cut(turns)
        if self.rate is None or not kept:
            return kept
        starts_s = [turn.at_s for turn, is_next in _in_turn(kept) if not is_next]
        if not starts_s[-1]:  # all at once: there are no gaps to scale
            return _drawn(kept, Arrivals(self.rate), self.seed)
        factor = len(starts_s) / self.rate / starts_s[-1]
        return [replace(turn, at_s=turn.at_s * factor) for turn in kept]


def started(
    sessions: Iterable[Sequence[Turn]], arrivals: Arrivals, seed: int, shape: Shape
) -> list[Turn]:
    """The turns of sessions that start at drawn times, cut by `shape`.

    Takes no more sessions than it needs: their number may be infinite if `shape` has a limit.
    """
    turns: list[Turn] = []
    ends: list[float] = []
    if shape.limit is None:
        sessions = list(sessions)
    most = shape.limit or len(list(sessions))
    for start_s, session in zip(arrivals.times_s(most, seed), sessions, strict=False):
        if shape.limit is not None and bisect_right(ends, start_s) >= shape.limit:
            break
        for turn in session:
            moved = replace(turn, at_s=turn.at_s + start_s)
            turns.append(moved)
            insort(ends, moved.at_s)
    return shape.cut(turns)


def _drawn(turns: Sequence[Turn], arrivals: Arrivals, seed: int) -> list[Turn]:
    """The requests at drawn times; a session in a closed loop moves as a whole."""
    ordered = list(_in_turn(turns))
    times = iter(arrivals.times_s(sum(not is_next for _, is_next in ordered), seed))
    moved: dict[str, float] = {}
    made = []
    for turn, is_next in ordered:
        at_s = turn.at_s + moved[turn.session] if is_next else next(times)
        if turn.session and not is_next:
            moved[turn.session] = at_s - turn.at_s
        made.append(replace(turn, at_s=at_s))
    return made


def _in_turn(turns: Sequence[Turn]) -> Iterator[tuple[Turn, bool]]:
    """The requests by time, and whether each waits for an answer in its session."""
    begun: set[str] = set()
    for turn in sorted(turns, key=lambda turn: turn.at_s):
        yield turn, turn.think_s is not None and turn.session in begun
        if turn.session:
            begun.add(turn.session)
