"""`spsctl plan`: which cluster serves a workload best."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from sps2.cli import render
from sps2.cli.simulation_options import (
    BurstinessOption,
    LinkOption,
    LongestOption,
    ModelOption,
    ProfileOption,
    ScaleOption,
    SeedOption,
    WorkloadOption,
    variation,
)
from sps2.cli.simulator.clusters import check_fits
from sps2.cli.simulator.hardware import CARDS, card_of
from sps2.cli.simulator.planning import report
from sps2.cli.simulator.planning.candidates import Pool, Setups
from sps2.cli.simulator.planning.goals import Aims, Goal
from sps2.cli.simulator.planning.loads import Load
from sps2.cli.simulator.planning.plan import Plan, make_plan
from sps2.cli.simulator.planning.settings_file import written
from sps2.cli.simulator.profile import read_profile
from sps2.cli.simulator.statistics import Objectives
from sps2.cli.workload import sources
from sps2.common.errors import Invalid
from sps2.services.scheduler.policies import POLICIES


def plan(
    model: ModelOption = "llama-3.1-8b",
    hardware: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A GPU: {', '.join(CARDS)}; or with its number, as H100-SXM:8. Several are "
            "alternatives."
        ),
    ] = None,
    cards: Annotated[
        int | None, typer.Option(min=1, help="How many there may be, where --hardware has none.")
    ] = None,
    profile: ProfileOption = None,
    workload: WorkloadOption = "azure-conv",
    goal: Annotated[
        Goal,
        typer.Option(
            "--for",
            help="The highest rate per card (goodput) or in all (throughput); or the least money "
            "(cost) or power that serves --rate.",
        ),
    ] = "goodput",
    rate: Annotated[
        float | None, typer.Option(min=1e-6, help="Requests per second to serve at least.")
    ] = None,
    ttft_ms: Annotated[float | None, typer.Option(min=0.001, help="SLO: TTFT at most.")] = None,
    tbt_ms: Annotated[
        float | None,
        typer.Option(min=0.001, help="SLO: mean time between a request's tokens at most."),
    ] = None,
    attainment: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of requests that must meet the SLOs.")
    ] = 0.9,
    price: Annotated[
        list[str] | None,
        typer.Option(help="US dollars an hour of a card: 3.2, or for one kind H100-SXM=3.2."),
    ] = None,
    watts: Annotated[
        list[str] | None, typer.Option(help="Watts of a card: 700, or H100-SXM=700.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=0.001, help="US dollars an hour at most.")
    ] = None,
    power: Annotated[float | None, typer.Option(min=0.001, help="Watts at most.")] = None,
    tp: Annotated[
        list[int] | None, typer.Option(min=1, help="Only this TP degree; several are possible.")
    ] = None,
    policy: Annotated[
        str, typer.Option(help="Scheduling policies to try, such as sps2,lars.")
    ] = "sps2",
    link_gbit: LinkOption = None,
    requests: Annotated[
        int, typer.Option(min=20, help="At most in one simulation; more narrow the intervals.")
    ] = 1000,
    burstiness: BurstinessOption = None,
    scale: ScaleOption = 1.0,
    longest: LongestOption = None,
    points: Annotated[int, typer.Option(min=1, help="How many configurations to judge.")] = 500,
    seed: SeedOption = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the configuration.", dir_okay=False),
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", help="Write all points.", dir_okay=False)
    ] = None,
) -> None:
    """Plan a cluster: how many shards of which kind serve a workload within its SLOs.

    Every configuration is judged by formulas first, the promising ones by simulation. The choice
    comes with its reasons, intervals, the runner-up, and a file for `spsctl up --config`. Where
    nothing meets the SLOs, the nearest configuration is shown, and the exit code is 1.
    """
    started = monotonic()
    objectives = Objectives(
        None if ttft_ms is None else ttft_ms / 1000, None if tbt_ms is None else tbt_ms / 1000
    )
    if ttft_ms is None and tbt_ms is None:
        raise Invalid("a plan needs an SLO: give --ttft-ms, --tbt-ms, or both")
    pools = pools_of(hardware or [], cards, profile, price or [], watts or [])
    _check_known(pools, goal, budget, power)
    setups = Setups(model, link_gbit)
    found = sources.find(
        workload,
        limit=requests,
        rate=rate,
        cv=variation(burstiness),
        scale=scale,
        longest=longest,
        seed=seed,
    )
    check_fits(found, setups.model)
    load = Load(found)
    if goal in ("cost", "power") and rate is None:
        if not Path(workload).expanduser().is_file():
            raise Invalid(f"--for {goal} needs the rate that is to be served: give --rate")
        rate = load.rate
    aims = Aims(goal, objectives, attainment, rate or 0.0, budget, power)
    policies = _policies(policy)
    with _progress() as bars:
        task = bars.add_task("screening", total=1.0)

        def progress(what: str, share: float) -> None:
            bars.update(task, description=what[:60], completed=share)

        made = make_plan(
            setups,
            pools,
            load,
            aims,
            degrees=tp or (),
            policies=policies,
            most=points,
            seed=seed,
            report=progress,
        )
    for line in report.shown(made):
        render.show(line)
    toml = ""
    if made.found:
        first = made.found[0]
        toml = written(first.candidate, setups, _notes(made, workload))
        if output is None:
            render.out.print(f"\n{toml}", end="", markup=False, soft_wrap=True)
        else:
            output.write_text(toml, encoding="utf-8")
            render.note(f"written to {output}: start it with `spsctl up --config {output}`")
    if as_json is not None:
        as_json.write_bytes(report.document(made, toml, monotonic() - started))
        render.note(f"written to {as_json}")
    render.note(f"planned in {monotonic() - started:.1f} s")
    if not made.found:
        raise typer.Exit(1)


def pools_of(
    hardware: Sequence[str],
    cards: int | None,
    profile: Path | None,
    price: Sequence[str],
    watts: Sequence[str],
) -> list[Pool]:
    """The cards to plan with. Raises Invalid if options contradict each other."""
    if bool(hardware) == (profile is not None):
        raise Invalid(
            f"give either a profile of `spsctl profile`, or --hardware, of {', '.join(CARDS)}"
        )
    prices, powers = _by_name(price, "--price"), _by_name(watts, "--watts")
    pools = []
    if profile is not None:
        if cards is None:
            raise Invalid("how many shards may there be? Give --cards")
        name = read_profile(profile).machine
        pools.append(Pool(name, cards, prices.get(""), powers.get(""), profile))
    for each in hardware:
        name, _, number = each.partition(":")
        card = card_of(name)
        if number and cards is not None:
            raise Invalid(f"--hardware {each} has a number: leave out --cards {cards}")
        if number and not (number.isdigit() and int(number)):
            raise Invalid(f"--hardware {each}: give a number of cards, as {card.name}:8")
        if not number and cards is None:
            raise Invalid(f"how many {card.name} may there be? Give --cards, or {card.name}:8")
        pools.append(
            Pool(
                card.name,
                int(number or cards or 0),
                prices.get(card.name, prices.get("", card.price)),
                powers.get(card.name, powers.get("", card.watts)),
            )
        )
    names = [pool.name for pool in pools]
    if twice := [name for name in names if names.count(name) > 1]:
        raise Invalid(f"--hardware has {twice[0]} twice: give the number of all its cards at once")
    for option, given in (("--price", prices), ("--watts", powers)):
        if odd := [name for name in given if name and name not in names]:
            raise Invalid(f"{option} {odd[0]}: that is none of the cards of --hardware")
    return pools


def _by_name(given: Sequence[str], option: str) -> dict[str, float]:
    """Values by card; by an empty name those of all others."""
    found = {}
    for each in given:
        name, _, value = each.rpartition("=")
        try:
            found[card_of(name).name if name else ""] = number = float(value)
        except ValueError:
            raise Invalid(f"{option} {each!r}: give a number, as 3.2 or H100-SXM=3.2") from None
        if not 0 < number < float("inf"):
            raise Invalid(f"{option} {each!r}: it must be more than 0")
    return found


def _check_known(
    pools: Sequence[Pool], goal: Goal, budget: float | None, power: float | None
) -> None:
    """Raises Invalid if prices or powers are needed that nobody knows."""
    if (goal == "cost" or budget is not None) and any(pool.price is None for pool in pools):
        raise Invalid("the profile has no price: give --price, in US dollars an hour of a shard")
    if (goal == "power" or power is not None) and any(pool.watts is None for pool in pools):
        raise Invalid("the profile has no power: give --watts, of a shard")


def _policies(names: str) -> list[str]:
    wanted = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if odd := [name for name in wanted if name not in POLICIES]:
        raise Invalid(f"there is no policy {odd[0]!r}; there are {', '.join(POLICIES)}")
    if not wanted:
        raise Invalid(f"name a policy: {', '.join(POLICIES)}")
    return wanted


def _notes(made: Plan, workload: str) -> str:
    aims, first = made.aims, made.found[0]
    limits = [
        f"{name} of {limit * 1000:g} ms"
        for name, limit in (("TTFT", aims.objectives.ttft_s), ("TBT", aims.objectives.tbt_s))
        if limit is not None
    ]
    return (
        f"Made by `spsctl plan` for {first.candidate.in_words}. Simulated: {workload}, "
        f"{report.number(first.rate)} {made.trials.load.unit} with {aims.attainment:.0%} of the "
        f"requests within {' and '.join(limits)}."
    )


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description:<60}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), console=render.err, transient=True) as bars:
        yield bars
