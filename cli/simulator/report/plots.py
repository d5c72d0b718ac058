"""Runs as PNG plots. Needs matplotlib."""

from collections.abc import Sequence
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from sps2.cli.simulator.outcomes import Run
from sps2.cli.simulator.report.series import (
    COLOURS,
    at_one_rate,
    by_rate,
    cumulative,
    timeline,
    values_of,
)
from sps2.cli.simulator.report.words import SWEPT, labels, title_with_unit
from sps2.cli.simulator.statistics import Summary
from sps2.common.errors import Invalid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 1000
"""Of a timeline, in time."""
GROUND = "#f2f2f2"
LOST = "#cc3311"
MARKERS = "osD^vP*X<>"
GREYS = ("#dddddd", "#333333")


def draw(
    runs: Sequence[Run],
    summaries: Sequence[Summary],
    folder: Path,
    *,
    rate: float | None = None,
) -> list[Path]:
    """Write the plots of runs into a folder; returns their files.

    `latencies.png` has the distributions at `rate` (None: as `at_one_rate` chooses), `bytes.png`
    what was sent, `rates.png` figures against the rate if there is more than one, and
    `timeline-N.png` what each shard did in the Nth run at `rate`.

    Raises:
        Invalid: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Invalid("plots need matplotlib: pip install 'sps2[bench]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    names = labels(runs)
    places = at_one_rate(summaries, rate)
    chosen = [(runs[place], names[place]) for place in places]
    made = {
        "latencies.png": _latencies(Figure, chosen, summaries),
        "bytes.png": _bytes(Figure, summaries, names),
    }
    if len({each.rate for each in summaries}) > 1:
        made["rates.png"] = _rates(Figure, summaries)
    for number, (run, name) in enumerate(chosen, 1):
        made[f"timeline-{number}.png"] = _timeline(Figure, run, name)
    for file, figure in made.items():
        figure.savefig(folder / file, dpi=130)
    return [folder / file for file in made]


def _latencies(
    make: "type[Figure]", runs: Sequence[tuple[Run, str]], summaries: Sequence[Summary]
) -> "Figure":
    """Cumulative distributions, for short and long prompts apart."""
    long_tokens = max((each.long_tokens for each in summaries), default=0)
    panels: tuple[tuple[str, str, dict[str, Any]], ...] = (
        (f"TTFT of prompts up to {long_tokens:,} tokens, s", "ttft_s", {"up_to": long_tokens}),
        ("TTFT of longer prompts, s", "ttft_s", {"above": long_tokens}),
        ("slowdown: TTFT / TTFT on an idle cluster", "slowdown", {}),
        ("TBT of a request, s", "tbt_s", {}),
        ("E2E, s", "e2e_s", {}),
    )
    figure = make(figsize=(13, 7.6), layout="constrained")
    axes = figure.subplots(2, 3).flat
    for axis, (title, metric, limits) in zip(axes, panels, strict=False):
        for place, (run, name) in enumerate(runs):
            points = cumulative(values_of(run, metric, **limits))
            if points:
                x, y = zip(*points, strict=True)
                axis.step(x, y, where="post", label=_plain(name), **_style(place))
        low, high = axis.get_xlim()
        if high > 10 * max(low, 0):
            axis.set_xscale("log")
        axis.set_ylim(0, 1)
        axis.set_xlabel(title)
        axis.set_ylabel("share of requests")
        axis.grid(alpha=0.3)
    corner = figure.axes[-1]
    corner.set_axis_off()
    drawn = [axis.get_legend_handles_labels() for axis in figure.axes]
    handles, texts = max(drawn, key=lambda each: len(each[1]))
    corner.legend(handles, texts, loc="center", frameon=False, fontsize=9)
    return figure


def _rates(make: "type[Figure]", summaries: Sequence[Summary]) -> "Figure":
    figure = make(figsize=(13, 7.6), layout="constrained")
    for axis, named in zip(figure.subplots(2, 3).flat, SWEPT, strict=True):
        for place, (name, points) in enumerate(by_rate(summaries, named.name).items()):
            if not points:
                continue
            x = [rate for rate, _ in points]
            y = [found.value for _, found in points]
            below = [found.value - found.low for _, found in points]
            above = [
                found.value / 4 if isinf(found.high) else found.high - found.value
                for _, found in points
            ]
            axis.errorbar(
                x,
                y,
                [below, above],
                capsize=3,
                marker=MARKERS[place % len(MARKERS)],
                markersize=4,
                label=_plain(name),
                **_style(place),
            )
            open_ends = [(rate, found.value * 1.25) for rate, found in points if isinf(found.high)]
            if open_ends:  # an arrow upwards
                axis.plot(*zip(*open_ends, strict=True), "^", color=COLOURS[place % len(COLOURS)])
        if named.unit in ("s", "times"):
            axis.set_yscale("log")
        elif named.unit == "share":
            axis.set_ylim(0, 1.02)
        axis.set_xlabel("requests per second")
        axis.set_ylabel(f"{named.title}, s" if named.unit == "s" else title_with_unit(named))
        axis.grid(alpha=0.3)
    handles, texts = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def _bytes(make: "type[Figure]", summaries: Sequence[Summary], names: Sequence[str]) -> "Figure":
    kinds = dict.fromkeys(kind for each in summaries for kind in each.sent_bytes)
    kinds.pop("all", None)
    figure = make(figsize=(11, 1.6 + 0.4 * max(1, len(summaries))), layout="constrained")
    axis = figure.subplots()
    places = list(range(len(summaries)))
    left = [0.0] * len(summaries)
    for number, kind in enumerate(kinds):
        widths = [
            each.sent_bytes[kind].value / 2**30 if kind in each.sent_bytes else 0.0
            for each in summaries
        ]
        axis.barh(places, widths, left=left, label=kind, color=COLOURS[number % len(COLOURS)])
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set_yticks(places, [_plain(name) for name in names])
    axis.invert_yaxis()
    axis.set_xlabel("GiB sent between shards")
    axis.grid(axis="x", alpha=0.3)
    if kinds:
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _timeline(make: "type[Figure]", run: Run, name: str) -> "Figure":
    """A row for each shard: prefill above, in a colour of the request; decode below, darker with
    more sequences."""
    from matplotlib.colors import LinearSegmentedColormap

    rows = timeline(run, COLUMNS)
    most = max((s.sequences for row in rows.values() for s in row), default=0.0) or 1.0
    shades = LinearSegmentedColormap.from_list("decode", GREYS)
    stop = max([run.stopped_s, *(each.stop_s for each in run.activities)], default=0.0)
    second = (stop or 1.0) / COLUMNS
    figure = make(figsize=(13, 1.6 + 0.42 * max(1, len(rows))), layout="constrained")
    axis = figure.subplots()
    for place, row in enumerate(rows.values()):
        axis.broken_barh([(0, COLUMNS * second)], (place - 0.42, 0.84), color=GROUND)
        for top, height, chosen in (
            (place - 0.42, 0.42, [s for s in row if s.request and not s.is_lost]),
            (place, 0.42, [s for s in row if s.sequences and not s.is_lost]),
            (place - 0.42, 0.84, [s for s in row if s.is_lost]),
        ):
            colours: list[Any] = [
                LOST
                if s.is_lost
                else shades(s.sequences / most)
                if top == place
                else COLOURS[crc32(s.request.encode()) % len(COLOURS)]
                for s in chosen
            ]
            spans = [(s.first * second, s.count * second) for s in chosen]
            axis.broken_barh(spans, (top, height), facecolors=colours)
    axis.set_yticks(range(len(rows)), [_plain(shard) for shard in rows])
    axis.invert_yaxis()
    axis.set_xlim(0, COLUMNS * second)
    axis.set_xlabel("seconds")
    axis.set_title(
        f"{_plain(name)}: prefill in a colour of the request; decode in grey, up to {most:.3g} "
        "sequences; lost in red",
        fontsize=10,
    )
    return figure


def _style(place: int) -> dict[str, Any]:
    dashes = ("-", "--", ":")
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": dashes[place // len(COLOURS) % len(dashes)],
        "linewidth": 1.4,
    }


def _plain(text: str) -> str:
    """Without what matplotlib gives a meaning: `$`, and `_` at the beginning."""
    return text.replace("$", r"\$").replace("_", "\u2009_", 1 if text.startswith("_") else 0)
