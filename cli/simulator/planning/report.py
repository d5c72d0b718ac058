"""A plan as tables and sentences, and as JSON."""

from collections.abc import Iterator
from math import isfinite

import msgspec
from rich.console import RenderableType
from rich.text import Text

from sps2.cli import render
from sps2.cli.simulator.clusters import LARGEST_SPAN
from sps2.cli.simulator.intervals import Figure
from sps2.cli.simulator.planning.candidates import Candidate
from sps2.cli.simulator.planning.capacity import Capacity, met_at
from sps2.cli.simulator.planning.plan import Plan
from sps2.cli.simulator.planning.reasons import binding
from sps2.cli.simulator.planning.search import Point
from sps2.cli.top.format import latency

BEST = {
    "goodput": "the highest rate per card within the SLOs",
    "throughput": "the highest rate within the SLOs",
    "cost": "the least money that serves the rate within the SLOs",
    "power": "the least power that serves the rate within the SLOs",
}


def shown(plan: Plan) -> Iterator[RenderableType]:
    """The whole plan, except for the configuration."""
    if not plan.found:
        yield from _missed(plan)
        return
    first = plan.found[0]
    yield Text(f"choice: {first.candidate.in_words}", style="bold green")
    for line in reasons(plan):
        yield Text(f"  {line}")
    yield Text("")
    yield _table(plan)
    yield Text(
        "95 % intervals, of the sample of requests and of the profile's margin; TTFT and TBT at "
        f"the {plan.aims.attainment:.0%} quantile, at that rate",
        style="grey50",
    )
    yield Text(judged(plan), style="grey50")


def reasons(plan: Plan) -> list[str]:
    """Why the first is chosen, what limits it, and the runner-up."""
    aims, trials, first = plan.aims, plan.trials, plan.found[0]
    unit, rate = trials.load.unit, first.rate
    lines = [
        f"{BEST[aims.goal]}: {number(rate)} {unit}, {number(_per_card(first))} per card"
        f"{_expense(first.candidate)}",
        binding(first, trials),
    ]
    if aims.rate:
        sure = "surely" if rate.low >= aims.rate else "but not surely"
        lines.append(f"{aims.rate:.3g} {unit} are wanted: that is served, {sure}")
        safe = [each for each in plan.found if each.rate.low >= aims.rate]
        if rate.low < aims.rate and safe:
            lines.append(f"surely served by: {safe[0].candidate.in_words}")
    left = first.candidate.pool.cards - first.candidate.cards
    if left and aims.goal == "goodput":
        lines.append(
            f"{left} of {first.candidate.pool.cards} cards are left; --for throughput takes all "
            "that help"
        )
    if plan.apart is None:
        lines.append("runner-up: none")
        return lines
    can = "can be told apart" if plan.apart.is_distinct else "cannot be told apart"
    lines.append(f"runner-up: {plan.found[1].candidate.in_words}")
    lines.append(f"the two {can}: {plan.apart.reason}")
    return lines


def judged(plan: Plan) -> str:
    """How many points were judged, and how."""
    ways = plan.judged
    simulated = sum(count for way, count in ways.items() if way != "screened")
    return (
        f"{len(plan.points):,} points: {ways.get('screened', 0):,} screened by formulas, "
        f"{simulated:,} simulated ({plan.runs:,} runs), {ways.get('measured', 0)} of them at length"
    )


def number(figure: Figure) -> str:
    """A figure with its interval."""
    return f"{figure.value:.3g} ({figure.low:.3g} to {figure.high:.3g})"


def document(plan: Plan, toml: str, seconds: float) -> bytes:
    """Everything, as JSON."""
    miss = plan.miss
    content = {
        "aims": plan.aims,
        "unit": plan.trials.load.unit,
        "choice": _described(plan.found[0].candidate) if plan.found else None,
        "configuration": toml or None,
        "reasons": reasons(plan) if plan.found else [],
        "is_distinct": plan.apart.is_distinct if plan.apart else None,
        "best": [
            _described(each.candidate)
            | {"rate": each.rate, "slower": each.slower, "faster": each.faster}
            | {"limit": binding(each, plan.trials)}
            for each in plan.found
        ],
        "nearest_miss": miss
        and _described(miss.point.candidate) | {"by": miss.by, "helps": [*miss.helps]},
        "judged": plan.judged,
        "runs": plan.runs,
        "seconds": round(seconds, 2),
        "points": [_point(each) for each in plan.points],
    }
    return msgspec.json.format(msgspec.json.encode(content)) + b"\n"


def _missed(plan: Plan) -> Iterator[RenderableType]:
    miss = plan.miss
    assert miss is not None
    yield Text("nothing meets what is wanted", style="bold red")
    yield Text(f"nearest: {miss.point.candidate.in_words}")
    yield Text(f"  {miss.by}")
    for index, help in enumerate(miss.helps):
        yield Text(f"  {'what would help:' if not index else '                '} {help}")
    yield Text(judged(plan), style="grey50")


def _table(plan: Plan) -> RenderableType:
    aims, unit = plan.aims, plan.trials.load.unit
    columns = ["SHARDS", "CARDS", ">TP", ">SP FROM", ">CHUNK", "POLICY"]
    table = render.table(*columns, f">{unit.upper()}", ">95 % INTERVAL", ">PER CARD", ">$/H", ">W",
                         ">WITHIN SLOS", ">TTFT", ">TBT")  # fmt: skip
    for each in plan.found:
        made, trial = each.candidate, each.passing
        assert trial is not None
        price, watts = made.price, made.watts
        rate = each.rate
        table.add_row(
            made.shards,
            f"{made.cards} x {made.pool.name}",
            str(made.tp),
            f"{made.span_tokens:,}" if made.is_parallel else "-",
            f"{made.chunk_tokens:,}" if made.chunk_tokens else "-",
            made.policy,
            f"{rate.value:.3g}",
            f"{rate.low:.3g} to {rate.high:.3g}",
            f"{rate.value / made.cards:.3g}",
            "-" if price is None else f"{price:,.2f}",
            "-" if watts is None else f"{watts:,.0f}",
            f"{met_at(plan.trials, trial).value:.1%}",
            _time(trial.ttft_s),
            _time(trial.tbt_s) if aims.objectives.tbt_s or trial.tbt_s else "-",
        )
    return table


def _time(seconds: float) -> str:
    return latency(seconds) if isfinite(seconds) else "∞"


def _per_card(capacity: Capacity) -> Figure:
    return capacity.rate.times(1 / capacity.candidate.cards)


def _expense(candidate: Candidate) -> str:
    found = []
    if candidate.price is not None:
        found.append(f"{candidate.price:,.2f} dollars an hour")
    if candidate.watts is not None:
        found.append(f"{candidate.watts:,.0f} W")
    return "; " + ", ".join(found) if found else ""


def _described(candidate: Candidate) -> dict[str, object]:
    span = candidate.span_tokens
    return {
        "hardware": candidate.pool.name,
        "cards": candidate.cards,
        "prefill": candidate.prefill,
        "decode": candidate.decode,
        "mixed": candidate.mixed,
        "tp": candidate.tp,
        "prefill_span_tokens": None if span >= LARGEST_SPAN else span,
        "chunk_tokens": candidate.chunk_tokens,
        "policy": candidate.policy,
        "dollars_per_hour": candidate.price,
        "watts": candidate.watts,
    }


def _point(point: Point) -> dict[str, object]:
    trial = point.trial
    return _described(point.candidate) | {
        "judged": point.how,
        "rate": point.rate,
        "bound": point.bound.most,
        "limit": point.limit,
        "reason": point.reason,
        "trial": trial
        and {
            "rate": trial.rate,
            "requests": trial.requests,
            "within_slos": trial.met,
            "is_stopped": trial.is_stopped,
            "ttft_s": trial.ttft_s,
            "tbt_s": trial.tbt_s,
        },
    }
