"""How far a simulated run is from the same run on a live cluster."""

import random
from collections.abc import Callable, Sequence

import msgspec

from sps2.cli.simulator import intervals
from sps2.cli.simulator.outcomes import Outcome, Run

DRAWS = 1000
Pairs = Sequence[tuple[Outcome, Outcome]]


class Accuracy(msgspec.Struct, frozen=True):
    """A figure of both runs. error: simulated / live - 1, with its 95 % interval (bootstrap over
    requests); None if the live one is 0."""

    name: str
    live: float
    simulated: float
    error: float | None
    low: float | None
    high: float | None


def accuracy(live: Run, simulated: Run, seed: int = 0) -> list[Accuracy]:
    """The figures of both runs, over the requests that both answered."""
    others = {each.request: each for each in simulated.outcomes}
    pairs = [
        (each, other)
        for each in live.outcomes
        if (other := others.get(each.request)) is not None
        and each.ended_s is not None
        and other.ended_s is not None
    ]
    kinds = sorted({kind for pair in pairs for each in pair for kind in each.sent_bytes})
    found = [_compared(name, pairs, of, seed) for name, of in FIGURES.items()] if pairs else []
    for kind in kinds:
        found.append(_compared(f"bytes of {kind}", pairs, _bytes_of(kind), seed))
    return found


def _compared(
    name: str, pairs: Pairs, of: Callable[[Sequence[Outcome]], float], seed: int
) -> Accuracy:
    def error(some: Pairs) -> float | None:
        live, simulated = (of([pair[side] for pair in some]) for side in (0, 1))
        return simulated / live - 1 if live else None

    draw = random.Random(f"{name} {seed}")
    drawn = [error(draw.choices(pairs, k=len(pairs))) for _ in range(DRAWS)]
    known = sorted(each for each in drawn if each is not None)
    low, high = (known[len(known) // 40], known[-1 - len(known) // 40]) if known else (None, None)
    live, simulated = (of([pair[side] for pair in pairs]) for side in (0, 1))
    return Accuracy(name, live, simulated, error(pairs), low, high)


def _mean(values: Sequence[float | None]) -> float:
    known = [each for each in values if each is not None]
    return sum(known) / len(known) if known else 0.0


def _p99(values: Sequence[float | None]) -> float:
    known = sorted(each for each in values if each is not None)
    return intervals.at(known, 0.99) if known else 0.0


def _bytes_of(kind: str) -> Callable[[Sequence[Outcome]], float]:
    return lambda outcomes: sum(each.sent_bytes.get(kind, 0.0) for each in outcomes)


FIGURES: dict[str, Callable[[Sequence[Outcome]], float]] = {
    "mean TTFT, s": lambda outcomes: _mean([each.ttft_s for each in outcomes]),
    "p99 TTFT, s": lambda outcomes: _p99([each.ttft_s for each in outcomes]),
    "mean TBT, s": lambda outcomes: _mean([each.tbt_s for each in outcomes]),
    "mean E2E, s": lambda outcomes: _mean([each.e2e_s for each in outcomes]),
    "p99 E2E, s": lambda outcomes: _p99([each.e2e_s for each in outcomes]),
}
