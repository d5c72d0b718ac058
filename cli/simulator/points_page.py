"""The table of docs/profiles.md: public measurements and the roofline's predictions.

`python -m sps2.cli.simulator.points_page docs/profiles.md` writes it.
"""

import sys
from pathlib import Path

from sps2.cli.render import counted
from sps2.cli.simulator.hardware import CARDS, MARGIN
from sps2.cli.simulator.public_points import POINTS, Point

START, END = "<!-- points: start -->\n", "<!-- points: end -->\n"
WHAT = {
    "product": "products of a layer, {rows}",
    "attention": "attention of a layer, {tokens}",
    "prefill": "prefill, {tokens}",
    "step": "decode step, {answers}, {keys:,} keys",
}


def tables() -> str:
    """The cards, then all points."""
    return f"{_cards()}\n{_points()}"


def written(page: str) -> str:
    """A page with the tables between its marks."""
    before, _, rest = page.partition(START)
    return f"{before}{START}\n{tables()}\n{END}{rest.partition(END)[2]}"


def _cards() -> str:
    lines = [
        "| card | bfloat16 | memory | NVLink, each way | products | attention | reading weights "
        "| reading keys | example price | power |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for card in CARDS.values():
        lines.append(
            f"| {card.name} | {card.tflops:,.0f} TFLOP/s | {card.memory_gb:.0f} GB at "
            f"{card.bandwidth_gb:,.0f} GB/s | {card.nvlink_gb:.0f} GB/s | {card.products:.0%} "
            f"| {card.attention:.0%} | {card.reading:.0%} | {card.key_reading:.0%} "
            f"| {card.price:.2f} $/h | {card.watts:.0f} W |"
        )
    return "\n".join(lines) + "\n"


def _points() -> str:
    lines = [
        "| what | model, cards | measured | roofline | error | source |",
        "|---|---|---|---|---|---|",
        *map(_row, POINTS),
    ]
    fitted = [abs(each.error) for each in POINTS if each.is_fitted]
    inside = sum(each <= MARGIN for each in fitted)
    return "\n".join(lines) + (
        f"\n\n{inside} of the {len(fitted)} points that count are within {MARGIN:.0%}; their mean "
        f"error is {sum(fitted) / len(fitted):.0%}.\n"
    )


def _row(point: Point) -> str:
    groups = f"{point.degree} x " if point.degree > 1 else ""
    cards = f"{groups}{point.tp} x {point.card.name}"
    what = WHAT[point.what].format(
        rows=counted(point.rows, "row"),
        tokens=counted(point.rows, "token"),
        answers=counted(point.rows, "answer"),
        keys=point.keys,
    )
    why = "" if point.is_fitted else "; does not count"
    return (
        f"| {what} | {point.model}, {cards} | {_seconds(point.seconds)} "
        f"| {_seconds(point.predicted_s())} | {point.error:+.0%} | {point.source}{why} |"
    )


def _seconds(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:,.1f} s"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
