"""Plots of a run (PNG): its metrics, and what went on over time. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sps2.cli.bench.serve.metrics import METRICS, samples
from sps2.cli.bench.serve.reply import Reply

DISTRIBUTIONS = ("ttft", "tpot", "itl", "e2el")
BINS = 60
BLUE, RED, GREY = "#4477aa", "#ee6677", "#999999"


def draw(replies: Sequence[Reply], started_s: float, title: str, path: Path) -> None:
    """Write one picture. Raises OSError."""
    done = [reply for reply in replies if reply.state == "done"]
    figure = Figure(figsize=(13, 7), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(2, 4)
    for axes, name in zip(grid[0], DISTRIBUTIONS, strict=True):
        _distribution(axes, sorted(1000 * value for value in samples(done, name)), name)
    _by_length(grid[1][0], done)
    _over_time(grid[1][1], done, started_s)
    _tokens(grid[1][2], done, started_s)
    _in_work(grid[1][3], replies, started_s)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(path, dpi=120)


def _distribution(axes: Any, values: Sequence[float], name: str) -> None:
    """The share of values that are at most so large."""
    shares = [(index + 1) / len(values) for index in range(len(values))]
    axes.step(values, shares, where="post", color=BLUE)
    for share in (0.5, 0.99):
        axes.axhline(share, color=GREY, linewidth=0.6, linestyle=":")
    if values and values[0] > 0 and values[-1] > 20 * values[0]:
        axes.set_xscale("log")
    axes.set_title(f"{name}: {METRICS[name]}", fontsize=8)
    axes.set_xlabel("ms")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)


def _by_length(axes: Any, done: Sequence[Reply]) -> None:
    points = [(reply.prompt_tokens, reply.ttft_s) for reply in done]
    axes.scatter([x for x, _ in points], [y for _, y in points], s=8, color=BLUE)
    axes.set_title("TTFT by length of the prompt", fontsize=8)
    axes.set_xlabel("tokens")
    axes.set_ylabel("s")
    axes.grid(alpha=0.3)


def _over_time(axes: Any, done: Sequence[Reply], started_s: float) -> None:
    x = [reply.sent_s - started_s for reply in done]
    axes.scatter(x, [reply.ttft_s for reply in done], s=8, color=BLUE, label="TTFT")
    axes.scatter(x, [reply.e2el_s for reply in done], s=8, color=RED, label="E2EL")
    axes.set_title("latency by the time of sending", fontsize=8)
    axes.set_xlabel("s since the start")
    axes.set_ylabel("s")
    axes.legend(fontsize=7, frameon=False)
    axes.grid(alpha=0.3)


def _tokens(axes: Any, done: Sequence[Reply], started_s: float) -> None:
    stamps = [stamp - started_s for reply in done for stamp in reply.stamps_s]
    width = max(1.0, max(stamps, default=0.0) / BINS)
    counts = [0] * (int(max(stamps, default=0.0) / width) + 1)
    for stamp in stamps:
        counts[int(stamp / width)] += 1
    edges = [index * width for index in range(len(counts) + 1)]
    axes.stairs([count / width for count in counts], edges, color=BLUE)
    axes.set_title("output tokens/s", fontsize=8)
    axes.set_xlabel("s since the start")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _in_work(axes: Any, replies: Sequence[Reply], started_s: float) -> None:
    changes = []
    for reply in replies:
        if reply.state == "done":
            changes += [(reply.sent_s - started_s, 1), (reply.stamps_s[-1] - started_s, -1)]
    total, x, y = 0, [0.0], [0]
    for at_s, step in sorted(changes):
        total += step
        x.append(at_s)
        y.append(total)
    axes.step(x, y, where="post", color=BLUE)
    failed = [reply.sent_s - started_s for reply in replies if reply.state == "failed"]
    axes.plot(failed, [0] * len(failed), "x", color=RED, label=f"failed ({len(failed)})")
    axes.set_title("requests in work", fontsize=8)
    axes.set_xlabel("s since the start")
    if failed:
        axes.legend(fontsize=7, frameon=False)
    axes.grid(alpha=0.3)
