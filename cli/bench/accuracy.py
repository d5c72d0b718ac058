"""`spsctl bench accuracy`: how far the simulator is from the live cluster."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sps2.cli import render
from sps2.cli.simulation_options import LongestOption, ScaleOption, WorkloadOption
from sps2.cli.simulator.accuracy import Accuracy, accuracy
from sps2.cli.simulator.clusters import check_fits
from sps2.cli.simulator.live import live_setup, lone_s, run_live
from sps2.cli.simulator.outcomes import Run
from sps2.cli.simulator.setup import Setup
from sps2.cli.simulator.simulation import Simulation
from sps2.cli.target import ConfigOption, NameOption, reachable
from sps2.cli.workload import sources
from sps2.cli.workload.requests import Workload
from sps2.common import places
from sps2.common.config import Cluster
from sps2.common.errors import Invalid


def measure(
    workload: WorkloadOption = "azure-conv",
    requests: Annotated[int, typer.Option(min=1, help="How many requests.")] = 60,
    rate: Annotated[float, typer.Option(min=0.001, help="Requests per second.")] = 0.5,
    scale: ScaleOption = 1.0,
    longest: LongestOption = None,
    seed: Annotated[int, typer.Option(help="Of lengths, times and tokens.")] = 0,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="A file of `spsctl profile`.",
            show_default="that of the cluster, in SPS2's own folder",
            dir_okay=False,
        ),
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", help="Write figures and requests.", dir_okay=False)
    ] = None,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Run a workload on an idle cluster and in the simulator, and print how far they are apart."""
    cluster = reachable(name, config)
    path = profile or places.state() / "profiles" / f"{cluster.name}.json"
    if not path.exists():
        raise Invalid(f"there is no profile at {path}: make one with `spsctl profile`")
    load = sources.find(
        workload, limit=requests, rate=rate, cv=1.0, scale=scale, longest=longest, seed=seed
    )
    setup = asyncio.run(live_setup(cluster, path))
    check_fits(load, setup.model)
    live, simulated, slower = both(cluster, setup, load, seed)
    found = accuracy(live, simulated)
    render.show(_table(found))
    failed = sum(bool(each.error) for each in live.outcomes)
    print(f"\n{render.counted(len(load.turns), 'request')}, {failed} failed; {setup.summary}")
    print(f"a prompt alone took {slower:.2f} times as long as profiled; so do simulated times")
    if as_json is not None:
        document = {
            "accuracy": found,
            "live": live.outcomes,
            "simulated": simulated.outcomes,
            "policy": live.policy,
            "slower": slower,
        }
        as_json.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
        render.note(f"written to {as_json}")


def both(cluster: Cluster, setup: Setup, workload: Workload, seed: int) -> tuple[Run, Run, float]:
    """A workload on the live cluster, and simulated on a machine as fast as it is now.

    The third value is how much longer a prompt alone took than when the profile was made: before or
    after the run, whichever was less disturbed.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=render.err, transient=True) as bars:
        task = bars.add_task("live", total=len(workload.turns))
        before_s = asyncio.run(lone_s(cluster))
        live = asyncio.run(
            run_live(cluster, setup, workload, seed, lambda n: bars.update(task, completed=n))
        )
        now_s = min(before_s, asyncio.run(lone_s(cluster)))
    slower = now_s / setup.profile.lone_s if setup.profile.lone_s else 1.0
    now = replace(setup, profile=setup.profile.slowed(slower))
    return live, Simulation(now).run(workload), slower


def _table(found: list[Accuracy]) -> Table:
    table = render.table("FIGURE", ">LIVE", ">SIMULATED", ">ERROR", ">95 % INTERVAL")
    for each in found:
        error = "" if each.error is None else f"{each.error:+.1%}"
        interval = "" if each.low is None else f"{each.low:+.1%} to {each.high:+.1%}"
        table.add_row(each.name, f"{each.live:,.4g}", f"{each.simulated:,.4g}", error, interval)
    return table
