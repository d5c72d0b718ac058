"""What is shown of a run: progress while it lasts, tables after it."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sps2.cli import render
from sps2.cli.bench.serve.load import Load
from sps2.cli.bench.serve.metrics import METRICS, Result

REFRESH_S = 0.5
"""Drawing takes time from requests in work."""
SHOWN_ERRORS = 10
LATE_MS = 20.0
"""A client that is later than this is too slow for its load."""


async def show_progress(load: Load, wanted: bool) -> None:
    """Draw a bar on stderr until cancelled; nothing if stderr is no terminal."""
    if not wanted or not render.err.is_terminal:
        return
    columns = (
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}  {task.description}"),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=render.err, auto_refresh=False, transient=True)
    task = bar.add_task("", total=len(load.jobs))
    with bar, suppress(asyncio.CancelledError):
        while True:
            bar.update(task, completed=_ended(load), description=_state(load), refresh=True)
            await asyncio.sleep(REFRESH_S)


def _ended(load: Load) -> int:
    return sum(reply.state in ("done", "failed") for reply in load.replies) + load.unsent


def _state(load: Load) -> str:
    running = sum(reply.state == "running" for reply in load.replies)
    failed = sum(reply.state == "failed" for reply in load.replies)
    first_s = [reply.ttft_s for reply in load.replies if reply.stamps_s]
    tokens = sum(len(reply.stamps_s) for reply in load.replies)
    passed_s = time.perf_counter() - load.started_s if load.started_s else 0.0
    text = f"{running} in work"
    if failed:
        text += f", [red]{failed} failed[/red]"
    if first_s and passed_s:
        text += f", {tokens / passed_s:.0f} tokens/s, TTFT {sum(first_s) / len(first_s):.2f} s"
    return text


def show(result: Result, metrics: Sequence[str]) -> None:
    """Print the tables of a run."""
    totals = render.table("", ">")
    for name, value in _totals(result):
        totals.add_row(name, value)
    render.show(totals)
    print()
    percents = next(iter(result.summaries.values())).percentiles
    names = [f">P{percent:g}" for percent in percents]
    table = render.table("MS", ">MEAN", ">MEDIAN", ">STD", *names, "")
    for name in metrics:
        summary = result.summaries[name]
        values = (summary.mean, summary.median, summary.std, *summary.percentiles.values())
        table.add_row(name, *(f"{value:,.2f}" for value in values), METRICS[name])
    render.show(table)
    for error, count in sorted(result.errors.items(), key=lambda each: -each[1])[:SHOWN_ERRORS]:
        render.say_error(f"{render.counted(count, 'request')} failed: {error}")
    if len(result.errors) > SHOWN_ERRORS:
        render.say_error(f"and {len(result.errors) - SHOWN_ERRORS} other errors")
    if result.late_ms > LATE_MS:
        render.say_error(
            f"this client was too busy: it sent 1 % of the requests at least "
            f"{result.late_ms:.0f} ms after their time"
        )


def _totals(result: Result) -> list[tuple[str, str]]:
    rows = [("completed requests", f"{result.completed:,}"), ("failed", f"{result.failed:,}")]
    if result.unfinished:
        rows.append(("interrupted", f"{result.unfinished:,}"))
    if result.unsent:
        rows.append(("not sent, as a turn before failed", f"{result.unsent:,}"))
    rows += [
        ("duration, s", f"{result.duration_s:,.2f}"),
        ("input tokens", f"{result.input_tokens:,}"),
        ("output tokens", f"{result.output_tokens:,}"),
        ("requests/s", f"{result.request_throughput:,.2f}"),
    ]
    if result.cached_tokens:
        share = result.cached_tokens / max(1, result.input_tokens)
        rows.insert(-2, ("of the input cached", f"{result.cached_tokens:,} ({share:.0%})"))
    if result.request_goodput is not None:
        rows.append(("requests/s within the goals", f"{result.request_goodput:,.2f}"))
    return [
        *rows,
        ("output tokens/s", f"{result.output_throughput:,.1f}"),
        ("all tokens/s", f"{result.total_token_throughput:,.1f}"),
        ("peak output tokens/s", f"{result.peak_output_tokens:,.0f}"),
        ("peak requests in work", f"{result.peak_requests:,}"),
    ]
