"""Plots of a report: quality against bytes, and which needles are kept. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from sps2.cli.bench.results import Measured, Report

COLOURS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#bbbbbb",
    "#000000",
    "#ee7733",
    "#009988",
)
"""Colours that colour-blind people can distinguish. Source: Paul Tol's bright scheme, plus two."""
MARKERS = "osD^vP*X<>"
CHANGES = (-10, -3, -1, -0.5, 0, 0.5, 1, 3, 10, 30, 100, 300, 1000)
"""Axis ticks of the change of perplexity, in %."""
LEAST_KL = 1e-6
"""Smaller values are rounding errors."""


def draw(report: Report, folder: Path) -> list[Path]:
    """Write the plots for each number of ranks; returns their files."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for ranks in sorted({each.ranks for each in report.pooled}):
        cases = [each for each in report.pooled if each.ranks == ranks]
        lengths = " and ".join(str(each) for each in dict.fromkeys(c.tokens for c in cases))
        title = (
            f"{report.model}, {report.dtype}, {ranks} ranks, {lengths} tokens of "
            f"{', '.join(report.documents)}"
        )
        made.append(_save(_quality(cases, title), folder / f"quality-{ranks}.png"))
        if any(each.needles for each in cases):
            made.append(_save(_needles(cases, title), folder / f"needles-{ranks}.png"))
    return made


def _quality(cases: Sequence[Measured], title: str) -> Figure:
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    change, divergence = figure.subplots(1, 2)
    for index, setting in enumerate(_settings(cases)):
        points = sorted((c for c in cases if c.setting == setting), key=lambda c: c.tokens)
        x = [each.traffic.total / each.traffic.causal for each in points]
        style: dict[str, Any] = {
            "color": COLOURS[index % len(COLOURS)],
            "marker": MARKERS[index % len(MARKERS)],
            "label": setting,
            "linewidth": 1,
        }
        worse = [100 * each.whole.perplexity_change for each in points]
        error = [100 * each.whole.perplexity_change_se for each in points]
        change.errorbar(x, worse, error, capsize=3, **style)
        kl = [max(each.whole.kl, LEAST_KL) for each in points]
        divergence.plot(x, kl, **style)
        for axes, y in ((change, worse), (divergence, kl)):
            if len(points) > 1:  # where the line of lengths ends
                axes.annotate(
                    str(points[-1].tokens),
                    (x[-1], y[-1]),
                    xytext=(5, 4),
                    textcoords="offset points",
                    fontsize=7,
                    color="#555555",
                )
    change.set_yscale("symlog", linthresh=1)
    change.yaxis.set_major_locator(FixedLocator(CHANGES))
    change.yaxis.set_major_formatter("{x:+g}")
    low, high = change.get_ylim()
    change.set_ylim(min(low, -1), max(high, 1))
    change.axhline(0, color="#999999", linewidth=0.8)
    change.set_ylabel("change of perplexity, % (linear within ±1)")
    divergence.set_yscale("log")
    divergence.set_ylabel(f"KL(exact || setting), nats per token (at least {LEAST_KL:g})")
    for axes in (change, divergence):
        axes.set_xlabel("bytes sent / causal exact in bfloat16")
        axes.set_xlim(left=0)
        axes.axvline(1, color="#999999", linewidth=0.8)
        axes.grid(alpha=0.3)
    figure.legend(
        *change.get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False
    )
    return figure


def _needles(cases: Sequence[Measured], title: str) -> Figure:
    settings = _settings(cases)
    columns = min(4, len(settings))
    rows = -(-len(settings) // columns)
    lengths = sorted({each.tokens for each in cases})
    depths = sorted({found.depth for each in cases for found in each.needles})
    figure = Figure(
        figsize=(1.5 + columns * (1 + 0.75 * len(lengths)), 1 + rows * (0.9 + 0.32 * len(depths))),
        layout="constrained",
    )
    figure.suptitle(f"{title}\ndigits kept / digits that exact attention finds", fontsize=9)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    image: Any = None
    for axes, setting in zip(grid.flat, settings, strict=False):
        table = [[_counts(cases, setting, t, depth) for t in lengths] for depth in depths]
        shares = [[kept / exact if exact else float("nan") for kept, exact in r] for r in table]
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="RdYlGn", alpha=0.6, aspect="auto")
        for y, row in enumerate(table):
            for x, (kept, exact) in enumerate(row):
                axes.text(x, y, f"{kept}/{exact}", ha="center", va="center", fontsize=7)
        axes.set_title(setting, fontsize=8)
        axes.set_facecolor("#dddddd")
        axes.set_xticks(range(len(lengths)), map(str, lengths))
        axes.set_yticks(range(len(depths)), [f"{each:.0%}" for each in depths])
    for axes in list(grid.flat)[len(settings) :]:
        axes.set_visible(False)
    figure.supxlabel("prompt tokens", fontsize=9)
    figure.supylabel("depth of the needle", fontsize=9)
    figure.colorbar(image, ax=grid, shrink=0.8)
    return figure


def _counts(cases: Sequence[Measured], setting: str, tokens: int, depth: float) -> tuple[int, int]:
    found = [
        needle
        for each in cases
        if (each.setting, each.tokens) == (setting, tokens)
        for needle in each.needles
        if needle.depth == depth
    ]
    return sum(needle.kept for needle in found), sum(needle.exact for needle in found)


def _settings(cases: Sequence[Measured]) -> list[str]:
    return list(dict.fromkeys(each.setting for each in cases))


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure).print_figure(path, dpi=150)
    return path
