"""`spsctl simulate`: what a cluster would do with a workload."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from sps2.cli import render
from sps2.cli.simulation_options import (
    BurstinessOption,
    HardwareOption,
    LinkOption,
    LongestOption,
    ModelOption,
    ProfileOption,
    ScaleOption,
    SeedOption,
    WorkloadOption,
    variation,
)
from sps2.cli.simulator.alone import Alone
from sps2.cli.simulator.clusters import Wanted, check_fits, setup_of
from sps2.cli.simulator.comparison import compare, have_same_requests
from sps2.cli.simulator.losses import parse_losses
from sps2.cli.simulator.outcomes import Run
from sps2.cli.simulator.report import documents, page, plots, table
from sps2.cli.simulator.simulation import Simulation
from sps2.cli.simulator.statistics import Objectives, summarise
from sps2.cli.workload import sources
from sps2.cli.workload.requests import Workload
from sps2.common.errors import Invalid
from sps2.services.scheduler.policies import POLICIES

ConfigOption = Annotated[
    Path | None,
    typer.Option(help="Configuration of the cluster, as for `spsctl up`.", dir_okay=False),
]


def simulate(
    workload: WorkloadOption = "azure-conv",
    policy: Annotated[
        str, typer.Option(help="Scheduling policies to compare, such as sps2,fcfs; or all.")
    ] = "sps2",
    model: ModelOption = "llama-3.1-8b",
    hardware: HardwareOption = None,
    profile: ProfileOption = None,
    config: ConfigOption = None,
    prefill: Annotated[int | None, typer.Option(min=1, help="Prefill shards.")] = None,
    decode: Annotated[int | None, typer.Option(min=1, help="Decode shards.")] = None,
    mixed: Annotated[int | None, typer.Option(min=1, help="Shards that do both.")] = None,
    tp: Annotated[int | None, typer.Option(min=1, help="GPUs of one shard.")] = None,
    link_gbit: LinkOption = None,
    requests: Annotated[int | None, typer.Option(min=1, help="How many requests.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.001, help="Only what comes in this time.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Requests per second; several as 1,2,4 are a sweep.")
    ] = None,
    burstiness: BurstinessOption = None,
    scale: ScaleOption = 1.0,
    longest: LongestOption = None,
    lose: Annotated[
        list[str] | None,
        typer.Option(help="A shard that ends: decode-0@60+30 is at 60 s, for 30 s."),
    ] = None,
    ttft_ms: Annotated[float | None, typer.Option(min=0, help="Goodput: TTFT at most.")] = None,
    tbt_ms: Annotated[
        float | None, typer.Option(min=0, help="Goodput: time between tokens at most.")
    ] = None,
    long_tokens: Annotated[
        int | None, typer.Option(min=1, help="Prompts over this many tokens count as long.")
    ] = None,
    seed: SeedOption = 0,
    as_json: Annotated[
        Path | None, typer.Option("--json", help="Write all figures.", dir_okay=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="A folder for plots (PNG).", file_okay=False)
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--page", help="Write an HTML page.", dir_okay=False)
    ] = None,
) -> None:
    """Simulate a cluster: times, bytes and throughput of a workload, by policy.

    The scheduler and the KV directory are those that serve. What shards take is from a profile that
    was measured here, or from data sheets; every figure has a 95 % interval.
    """
    _check_outputs(as_json, html, plot)
    wanted = Wanted(model, hardware, profile, config, prefill, decode, mixed, tp, link_gbit)
    policies = _policies(policy)
    rates = _rates(rate)
    losses = parse_losses(lose or [])
    workloads = [
        sources.find(
            workload,
            limit=requests,
            rate=each,
            cv=variation(burstiness),
            scale=scale,
            span_s=seconds,
            longest=longest,
            seed=seed,
        )
        for each in rates
    ]
    setups = [setup_of(wanted, each) for each in policies]
    for each in workloads:
        check_fits(each, setups[0].model)
    alone = Alone(setups[0], (turn.prompt_tokens for each in workloads for turn in each.turns))
    runs: list[Run] = []
    is_interrupted = False
    with _progress() as bars:
        try:
            for load in workloads:
                for made in setups:
                    name = made.config.scheduler.policy
                    task = bars.add_task(_title(name, load, rates), total=len(load.turns))
                    run = Simulation(made, losses).run(
                        load, alone, partial(_show_progress, bars, task)
                    )
                    run.seed = seed
                    runs.append(run)
        except KeyboardInterrupt:
            is_interrupted = True
    objectives = Objectives(
        None if ttft_ms is None else ttft_ms / 1000, None if tbt_ms is None else tbt_ms / 1000
    )
    summaries = [summarise(run, objectives=objectives, long_tokens=long_tokens) for run in runs]
    for shown in table.tables_of(summaries, render.out.width):
        render.show(shown)
    comparisons = [compare(runs[0], run) for run in runs[1:] if have_same_requests(runs[0], run)]
    outputs: list[tuple[Path | None, Callable[[Path], object]]] = [
        (as_json, lambda path: path.write_bytes(documents.write(summaries, comparisons, runs))),
        (html, lambda path: path.write_text(page.page(runs, summaries), encoding="utf-8")),
        (plot, lambda path: plots.draw(runs, summaries, path)),
    ]
    is_written = _write(outputs)
    if unanswered := sum(each.requests - each.completed for each in summaries):
        render.note(f"{render.counted(unanswered, 'request')} had no whole answer", "yellow")
    if is_interrupted:
        render.note(f"interrupted: {len(runs)} of {len(workloads) * len(setups)} runs are over")
        raise typer.Exit(130)
    if not is_written:
        raise typer.Exit(1)


def _check_outputs(*paths: Path | None) -> None:
    """Raises Invalid if one of the files or folders to write cannot be written."""
    for path in paths:
        if path is None:
            continue
        if str(path) == "-":
            raise Invalid("give a file's name instead of -; tables go to standard output")
        there = next(each for each in (path, *path.absolute().parents) if each.exists())
        if not os.access(there, os.W_OK) or (path.parent.exists() is False and path.suffix):
            raise Invalid(f"{path} cannot be written: make its folder, or name another")


def _write(outputs: Sequence[tuple[Path | None, Callable[[Path], object]]]) -> bool:
    """Write each output that has a place, even if others fail; whether all were written."""
    is_written = True
    for path, write in outputs:
        if path is None:
            continue
        try:
            write(path)
            render.note(f"written to {path}")
        except (OSError, Invalid) as error:
            render.say_error(f"error: {error}")
            is_written = False
    return is_written


def _show_progress(bars: Progress, task: TaskID, ended: int) -> None:
    bars.update(task, completed=ended)


def _policies(names: str) -> list[str]:
    if names == "all":
        return [*POLICIES]
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if odd := [name for name in wanted if name not in POLICIES]:
        raise Invalid(f"there is no policy {odd[0]!r}; there are {', '.join(POLICIES)}")
    if not wanted:
        raise Invalid(f"name a policy: {', '.join(POLICIES)}")
    return list(dict.fromkeys(wanted))


def _rates(text: str | None) -> list[float | None]:
    if text is None:
        return [None]
    try:
        rates = [float(each) for each in text.split(",")]
    except ValueError:
        raise Invalid(f"--rate {text!r}: give numbers such as 0.5 or 1,2,4") from None
    if min(rates) <= 0:
        raise Invalid(f"--rate {text!r}: rates are over 0")
    return [*rates]


def _title(policy: str, workload: Workload, rates: list[float | None]) -> str:
    return policy if len(rates) < 2 else f"{policy} at {workload.name}"


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), console=render.err, transient=True) as bars:
        yield bars
