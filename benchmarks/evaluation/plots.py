"""The plots of docs/evaluation.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

SHOWN = {
    "sps2": ("#d62728", "-", 2.4),
    "fcfs": ("#7f7f7f", "-", 1.2),
    "sarathi": ("#1f77b4", "-", 1.2),
    "distserve": ("#2ca02c", "-", 1.2),
    "splitwise": ("#9467bd", "-", 1.2),
    "loongserve": ("#ff7f0e", "-", 1.2),
    "lars": ("#17becf", "-", 1.2),
}
"""Colour, dash and width by system; the others would only crowd the plots."""
FIGURES = {
    "mean TTFT, s": "ttft_s.all.mean",
    "p99 TTFT of short prompts, s": "ttft_s.short.p99",
    "p99 TBT of a request, s": "tbt_s.all.p99",
}


def draw(points: Sequence[dict[str, Any]], folder: Path) -> None:
    """One picture for each kind of cards: a row for each set, a column for each figure."""
    for number, hardware in enumerate(dict.fromkeys(point["hardware"] for point in points), 1):
        mine = [point for point in points if point["hardware"] == hardware]
        sets = list(dict.fromkeys(point["set"] for point in mine))
        figure = Figure(figsize=(11, 2.7 * len(sets)), layout="constrained")
        axes = figure.subplots(len(sets), len(FIGURES), squeeze=False)
        for row, kind in zip(axes, sets, strict=True):
            here = [point for point in mine if point["set"] == kind]
            for axis, (title, name) in zip(row, FIGURES.items(), strict=True):
                for system, (colour, dash, width) in SHOWN.items():
                    values = [_value(point["summaries"][system], name) for point in here]
                    axis.plot(
                        [point["load"] for point in here],
                        values,
                        color=colour,
                        linestyle=dash,
                        linewidth=width,
                        label=system,
                        marker=".",
                    )
                axis.set_yscale("log")
                axis.set_title(f"set {kind}: {title}", fontsize=9)
                axis.set_xlabel("sessions" if kind == "B" else "load", fontsize=8)
                axis.tick_params(labelsize=8)
                axis.grid(alpha=0.3)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)
        figure.suptitle(hardware, fontsize=11)
        figure.savefig(folder / f"evaluation-{number}.png", dpi=90)


def _value(summary: dict[str, Any], name: str) -> float:
    found = summary[name][0]
    return float("nan") if found is None else float(found)
