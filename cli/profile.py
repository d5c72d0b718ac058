"""`spsctl profile`: measures a running cluster, for simulations of it."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import msgspec
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sps2.cli import render
from sps2.cli.simulator.fitting import Fitted, checked, fit, margin_of, split, step_s, ttft_s
from sps2.cli.simulator.live import live_setup, lone_s, run_live
from sps2.cli.simulator.machine_load import Load, machine_of, most_cores
from sps2.cli.simulator.measuring import Measured, Measuring
from sps2.cli.simulator.outcomes import Run
from sps2.cli.simulator.probes import Asker, Probes, Report, Target
from sps2.cli.simulator.profile import Checked, Profile
from sps2.cli.simulator.simulation import Simulation
from sps2.cli.simulator.under_load import fitted_to, workload_of
from sps2.cli.target import ConfigOption, NameOption, reachable
from sps2.common import places
from sps2.common.client import AsyncClient
from sps2.common.config import Cluster
from sps2.common.errors import Invalid, Refused
from sps2.common.messages import ClusterStatus
from sps2.common.model.config import ModelConfig, read
from sps2.common.models import fingerprint, item_bytes, locate, weight_files
from sps2.services.scheduler.hardware import UNKNOWN, Known, hardware_of
from sps2.services.scheduler.schemes import Schemes

WORDS = (
    "the quick brown fox jumps over a lazy dog while seven wizards quietly boil five gallons of "
    "liquid oxygen beneath an old bridge near the northern harbour and nobody asks them why"
)
"""Prompts are made of its tokens, in random order."""
MARGIN_TOKENS = 64
"""Of room for answers."""
BUSY = 0.1
"""Others use the machine if they have more than this share of its cores."""
LOADED_SHARE = 0.25
"""Of the time, in which the cluster is measured under load."""
MEANINGS = {
    "ttft": "time to the first token",
    "tbt": "time between tokens",
    "bytes": "bytes between prefill shards",
}


def profile(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to write the profile.",
            show_default="one file for each cluster, in SPS2's own folder",
            dir_okay=False,
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=5.0, help="How long to measure, at least roughly.")
    ] = 60.0,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the model, if it is not on this machine by its usual name.",
            file_okay=False,
        ),
    ] = None,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Measure an idle cluster, so that `spsctl simulate` can predict it.

    It measures prompts of several lengths and SP degrees, and answers in batches, writes a profile,
    and prints how far that is from measurements that it was not fitted to.
    """
    cluster = reachable(name, config)
    path = output or places.state() / "profiles" / f"{cluster.name}.json"
    _write(path, None)
    folder = model or locate(cluster.model)
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=render.err, transient=True) as bars:
        task = bars.add_task("measuring", total=1.0)

        def report(what: str, share: float) -> None:
            bars.update(task, description=what, completed=share)

        before_s = asyncio.run(lone_s(cluster))
        made, longest = asyncio.run(_made(cluster, folder, seconds, seed, report))
        least_s = min(before_s, asyncio.run(lone_s(cluster)))  # the less disturbed
        made = msgspec.structs.replace(made, lone_s=least_s)
        _write(path, made)
        if longest:
            report("requests under load", 1 - LOADED_SHARE)
            loaded_s = seconds * LOADED_SHARE
            made = asyncio.run(_under_load(cluster, folder, path, longest, loaded_s, seed))
            _write(path, made)
    _show(made)
    render.note(f"written to {path}")


async def _made(
    cluster: Cluster, folder: Path, seconds: float, seed: int, report: Report
) -> tuple[Profile, int]:
    """The profile, and the longest prompt if shards share cores and are to be measured under load,
    or 0."""
    shape = read(folder)
    async with AsyncClient(cluster.gateway_addresses, cluster.bus) as client:
        status = await client.status()
        longest = (await client.models())[0].max_model_len
        target = target_of(
            cluster, status, shape, item_bytes(cluster.dtype, folder, shape), longest
        )
        target = replace(target, ids=await client.tokenize(WORDS, False))
        load = Load(status)
        asker = cast(Asker, client)  # `stream_options` is none of the SDK's declared parameters
        probes = Probes(asker, target, random.Random(seed))
        if cores := most_cores(cluster, status):
            seconds *= 1 - LOADED_SHARE
        found = await Measuring(probes, target, seconds, report).run()
    if (others := load.others()) > BUSY:
        render.note(
            f"other programs had {others:.0%} of this machine's cores meanwhile: the profile is "
            "that of a machine with such neighbours",
            "yellow",
        )
    weights = fingerprint(folder) if _has_weights(folder) else ""
    return made_from(found, cluster, status, shape, weights, seed), longest_of(found) * bool(cores)


def longest_of(found: Measured) -> int:
    """Tokens of the longest prompt that was measured on one shard."""
    return max(each.shares[0].rows for each in found.prompts if each.is_alone)


async def _under_load(
    cluster: Cluster, folder: Path, path: Path, longest: int, seconds: float, seed: int
) -> Profile:
    """The profile at `path` with what shards of one machine cost each other under load."""
    setup = await live_setup(cluster, path, str(folder))
    made = setup.profile
    workload = workload_of(made, longest, seconds, seed)
    live = await run_live(cluster, setup, workload, seed)
    if any(each.error for each in live.outcomes):
        render.note("requests failed under load: what shards cost each other is not measured")
        return made

    def simulated(profile: Profile) -> Run:
        return Simulation(replace(setup, profile=profile)).run(workload)

    how = f"`spsctl profile`: {len(workload.turns)} requests, half of what the cores can do"
    sources = made.sources | dict.fromkeys(("step_threads", "busy_prefill"), how)
    return msgspec.structs.replace(fitted_to(made, live, simulated), sources=sources)


def target_of(
    cluster: Cluster, status: ClusterStatus, shape: ModelConfig, itemsize: int, longest: int
) -> Target:
    """What is measured of a cluster; without token ids yet.

    Raises:
        Refused: it is not ready, or shards are missing.
    """
    if not status.ready or status.missing:
        raise Refused(
            f"the cluster is not complete: {status.waiting_for or status.missing}; see "
            "`spsctl status`"
        )
    duties = [shard.duty or shard.role for shard in status.shards]
    schemes = Schemes(shape, itemsize, cluster.sharing, cluster.attention, None, cluster.tp)
    schemes.adapt(_known(status))
    keepers = [shard for shard in status.shards if shard.pages]
    pool = min(shard.pages for shard in keepers) * cluster.kv.page_tokens
    return Target(
        schemes=schemes,
        ids=(),
        longest=min(longest, pool) - MARGIN_TOKENS,
        prefillers=sum(duty != "decode" for duty in duties),
        decoders=sum(duty != "prefill" for duty in duties),
        page_tokens=cluster.kv.page_tokens,
        decode_span_tokens=cluster.scheduler.decode_span_tokens,
        capacity=pool if cluster.mixed else 0,
    )


def made_from(
    found: Measured,
    cluster: Cluster,
    status: ClusterStatus,
    shape: ModelConfig,
    weights: str,
    seed: int,
) -> Profile:
    """Fit a profile to two thirds of what was found, and check it with the rest."""
    prompts, other_prompts = split(found.prompts, lambda each: (len(each.shares), each.is_shared))
    steps, other_steps = split(found.steps, lambda each: (each.is_spread, each.busy))
    fitted = fit(prompts, steps, most_cores(cluster, status), found.behind)
    hardware = hardware_of(cluster.sharing, _known(status))
    blank = Profile(
        name=f"{status.model} on {machine_of(cluster, status)}, measured",
        model=status.model,
        machine=machine_of(cluster, status),
        is_measured=True,
        sources=_sources(fitted, found),
        margin=0.0,
        fingerprint=weights,
        launch_s=0.0,
        pass_s=((1, 0.0),),
        pair_s=0.0,
        share_s=0.0,
        step_s=((1, 0.0),),
        key_s=0.0,
        remote_s=0.0,
        link_gbit=hardware.link_gbit,
        link_latency_s=fitted.remote_s / (2 * shape.layers) or hardware.link_latency_s,
    )
    made = fitted.put_into(blank)
    hides = fitted.link_gbit is None
    checks: dict[str, Checked] = {}
    if other_prompts:
        pairs = [(ttft_s(made, each, hides), each.ttft_s) for each in other_prompts]
        checks["ttft"] = checked(pairs, seed)
    if other_steps:
        pairs = [(step_s(made, each), each.seconds) for each in other_steps]
        checks["tbt"] = checked(pairs, seed)
    margin = margin_of([*checks.values()])
    if found.exchanged:
        checks["bytes"] = checked([(each.predicted, each.sent) for each in found.exchanged], seed)
    return msgspec.structs.replace(made, margin=margin, checks=checks)


def _known(status: ClusterStatus) -> Known:
    """What the cluster has measured of its shards and links."""
    rates = status.rates
    return Known(rates.gflops, rates.link_gbit, rates.link_latency_s) if rates else UNKNOWN


def _sources(fitted: Fitted, found: Measured) -> dict[str, str]:
    how = (
        f"`spsctl profile`: {len(found.prompts)} kinds of prompts, alone up to "
        f"{longest_of(found):,} tokens"
    )
    made = dict.fromkeys(("launch_s", "pass_s", "pair_s"), how)
    is_shared = any(each.is_shared for each in found.prompts)
    is_spread = any(each.is_spread for each in found.steps)
    steps = f"`spsctl profile`: {len(found.steps)} kinds of batches"
    behind = f"`spsctl profile`: {len(found.behind)} kinds of prompts behind cached ones"
    made |= {
        "share_s": how if is_shared else "not measured: there is one prefill shard",
        "step_s": steps,
        "key_s": steps,
        "remote_s": steps if is_spread else "not measured: no KV was spread over decode shards",
        "link_gbit": how
        if fitted.link_gbit
        else "the scheduler's probes, or the configuration: computing hid all transfers",
        "prefix_s": behind if fitted.prefix_s is not None else "not measured: as remote_s",
        "prefix_pair_s": behind if fitted.prefix_pair_s is not None else "not measured: as pair_s",
        "link_latency_s": "remote_s, by two hops of each layer"
        if fitted.remote_s
        else "the scheduler's probes, or the configuration",
        "cores": f"{how}; how much slower several at once are"
        if any(not each.is_alone for each in found.prompts)
        else "cores of the machine, by the threads of a shard",
    }
    return made


def _write(path: Path, made: Profile | None) -> None:
    """Write a profile; None only checks that one can be written, before a minute is spent."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab" if made is None else "wb") as file:
            if made is not None:
                file.write(msgspec.json.format(msgspec.json.encode(made)) + b"\n")
    except OSError as error:
        raise Invalid(f"cannot write {path}: {error.strerror}") from error
    if made is None and not path.stat().st_size:
        path.unlink()


def _has_weights(folder: Path) -> bool:
    try:
        return bool(weight_files(folder))
    except Invalid:
        return False


def _show(made: Profile) -> None:
    table = render.table("PREDICTED", ">ERROR", ">95 % INTERVAL", ">POINTS NOT FITTED TO")
    for what, check in made.checks.items():
        table.add_row(
            MEANINGS[what],
            f"{check.error:.1%}",
            f"{check.low:.1%} to {check.high:.1%}",
            str(len(check.residuals)),
        )
    render.out.print(made.name, style="bold", markup=False, soft_wrap=True)
    render.show(table)
