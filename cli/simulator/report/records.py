"""The requests of runs for a page's list: in few bytes, as arrays by position."""

from collections.abc import Sequence
from typing import Any

import msgspec

from sps2.cli.simulator.comparison import in_words
from sps2.cli.simulator.outcomes import Outcome, Run
from sps2.cli.simulator.statistics import in_order, is_starved, waits_before_first

MOST_RECORDS = 36_000
"""Requests times runs on a page; of more, those that fared worst and an even sample."""
WORST = 0.5
"""Share of these that fared worst."""


class Records(msgspec.Struct, frozen=True):
    """What the page's script reads.

    runs: their names. requests: [name, session, arrival, prompt tokens, answer tokens] of each.
    outcomes: for each run, for each request: [TTFT, E2E, slowdown, degree, cached tokens, group,
        owner, error, planned, is starved, bytes of each kind, [cause, seconds, times, ...],
        seconds of its TTFT without a wait]; 0 if the run did not have the request. Texts are places
        in `texts`. None: there is none.
    total: how many requests there were.
    """

    runs: list[str]
    kinds: list[str]
    causes: list[str]
    cause_words: list[str]
    texts: list[str]
    requests: list[list[Any]]
    outcomes: list[list[Any]]
    total: int
    long_tokens: int


def records_of(
    runs: Sequence[Run], names: Sequence[str], long_tokens: int, most: int = MOST_RECORDS
) -> Records:
    """The records of runs. most: requests times runs."""
    by_name = [{each.request: each for each in run.outcomes} for run in runs]
    first: dict[str, Outcome] = {}
    for run in runs:
        for each in in_order(run):
            first.setdefault(each.request, each)
    chosen = _choose(list(first.values()), by_name, most // max(1, len(runs)))
    every = [each for run in runs for each in run.outcomes]
    kinds = sorted({kind for each in every for kind in each.sent_bytes})
    causes = sorted({delay.cause for each in every for delay in each.delays})
    texts = _Texts()
    return Records(
        runs=list(names),
        kinds=kinds,
        causes=causes,
        cause_words=[in_words(cause) for cause in causes],
        requests=[
            [
                each.request,
                texts.place(each.session),
                round(each.arrived_s, 3),
                each.prompt_tokens,
                each.answer_tokens,
            ]
            for each in chosen
        ],
        outcomes=[
            [
                _record(found, run, kinds, causes, texts) if found else 0
                for found in (of.get(each.request) for each in chosen)
            ]
            for run, of in zip(runs, by_name, strict=True)
        ],
        texts=texts.all,
        total=len(first),
        long_tokens=long_tokens,
    )


class _Texts:
    """Each text once."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def place(self, text: str) -> int:
        return self._places.setdefault(text, len(self._places))

    @property
    def all(self) -> list[str]:
        return list(self._places)


def _choose(
    requests: list[Outcome], by_name: Sequence[dict[str, Outcome]], most: int
) -> list[Outcome]:
    """In the order of arrival."""
    requests.sort(key=lambda each: each.arrived_s)
    if len(requests) <= most:
        return requests

    def badness(each: Outcome) -> float:
        found = [of[each.request] for of in by_name if each.request in of]
        values = [outcome.slowdown for outcome in found]
        if any(outcome.ended_s is None or outcome.error for outcome in found):
            return float("inf")
        return max((value for value in values if value is not None), default=0.0)

    worst = {e.request for e in sorted(requests, key=badness, reverse=True)[: int(most * WORST)]}
    rest = [each for each in requests if each.request not in worst]
    wanted = most - len(worst)
    worst |= {rest[place * len(rest) // wanted].request for place in range(wanted)}
    return [each for each in requests if each.request in worst]


def _record(
    outcome: Outcome, run: Run, kinds: Sequence[str], causes: Sequence[str], texts: _Texts
) -> list[Any]:
    waits: list[Any] = []
    waited = waits_before_first(outcome)
    ttft_s = outcome.ttft_s
    for cause, seconds in waited.items():
        times = sum(delay.cause == cause for delay in outcome.delays)
        waits += [causes.index(cause), brief(seconds), times]
    return [
        brief(outcome.ttft_s),
        brief(outcome.e2e_s),
        brief(outcome.slowdown),
        outcome.degree,
        outcome.cached_tokens,
        texts.place(", ".join(outcome.group)),
        texts.place(outcome.owner),
        texts.place(outcome.error),
        outcome.epochs,
        int(is_starved(outcome, run.stopped_s)),
        [brief(outcome.sent_bytes.get(kind, 0.0)) for kind in kinds],
        waits,
        None if ttft_s is None else brief(max(0.0, ttft_s - sum(waited.values()))),
    ]


def brief(value: float | None) -> float | int | None:
    """With three or four digits, in few characters."""
    if value is None:
        return None
    if abs(value) >= 1000:
        return int(float(f"{value:.4g}"))
    rounded = float(f"{value:.3g}")
    return int(rounded) if rounded.is_integer() else rounded
