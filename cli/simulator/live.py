"""Runs a workload on a live cluster, to compare it with its simulation."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from statistics import median
from uuid import uuid4

from sps2.cli.bench.serve.backends import Prompt, Sdk
from sps2.cli.bench.serve.jobs import Job
from sps2.cli.bench.serve.load import Load, warm_up
from sps2.cli.bench.serve.prompts import Prompts
from sps2.cli.bench.serve.reply import Reply
from sps2.cli.simulator.clusters import Wanted, configured
from sps2.cli.simulator.outcomes import Outcome, Run
from sps2.cli.simulator.setup import Setup
from sps2.cli.workload.requests import Turn, Workload
from sps2.common.client import AsyncClient
from sps2.common.config import Cluster
from sps2.common.errors import Invalid, Refused

POLL_S = 0.25
LONE, LONE_TOKENS = 8, 64
"""Prompts that are sent one after another to see how fast a machine is, and their length."""


async def run_live(
    cluster: Cluster,
    setup: Setup,
    workload: Workload,
    seed: int,
    report: Callable[[int], None] = lambda ended: None,
) -> Run:
    """Send a workload to a cluster that serves nobody else, and collect what became of it.

    Args:
        setup: as which the cluster is simulated.
        seed: of the prompts' tokens.
        report: called now and then with how many requests have ended.

    Raises:
        Refused, PeerLost: the cluster is not ready, or serves others.
    """
    async with AsyncClient(cluster.gateway_address, cluster.bus) as client:
        status = await client.status()
        if status.requests:
            raise Refused("the cluster is serving others: try again when it is idle")
        prompts = Prompts(seed)
        numbered = enumerate(workload.turns)
        jobs = [Job(turn, _prompt(prompts, turn, workload.block_tokens, n)) for n, turn in numbered]
        backend = Sdk(client, _fields())
        warm = Job(Turn(0.0, 64, 4), _prompt(prompts, Turn(0.0, 64, 4), 64, len(jobs)))
        if error := await warm_up(backend, warm, 2, None):
            raise Invalid(f"the cluster does not answer: {error}")
        load = Load(jobs, backend)
        shown = asyncio.create_task(_report(load, report))
        try:
            await load.run()
        finally:
            shown.cancel()
    return _run_of(load, setup, workload, seed)


async def lone_s(cluster: Cluster) -> float:
    """TTFT of a short prompt on an idle cluster: the median of a few.

    It tells how fast a shared machine is, which changes from minute to minute.
    """
    turn = Turn(0.0, LONE_TOKENS, 1)
    async with AsyncClient(cluster.gateway_address, cluster.bus) as client:
        prompts = Prompts()
        jobs = [Job(turn, _prompt(prompts, turn, 64, number)) for number in range(LONE)]
        load = Load(jobs, Sdk(client, _fields()), max_concurrency=1)
        await load.run()
    found = [reply.ttft_s for reply in load.replies if reply.stamps_s]
    if not found:
        raise Invalid(f"the cluster does not answer: {load.replies[0].error}")
    return median(found)


async def live_setup(cluster: Cluster, profile: Path, model: str = "") -> Setup:
    """A running cluster as the simulator sees it, with the pools that its shards have.

    Args:
        model: as for `models.shape_of`; by default the cluster's.
    """
    async with AsyncClient(cluster.gateway_address, cluster.bus) as client:
        status = await client.status()
    made = configured(Wanted(model or cluster.model, profile=profile), cluster)
    pages = min((shard.pages for shard in status.shards if shard.pages), default=0)
    return dataclasses.replace(made, pages=pages)


def _fields() -> dict[str, object]:
    """Of all requests of a run, which find nothing cached that an earlier run left."""
    return {"temperature": 0, "ignore_eos": True, "cache_salt": uuid4().hex}


def _prompt(
    prompts: Prompts, turn: Turn, block_tokens: int, number: int
) -> Callable[[Sequence[str]], Prompt]:
    return lambda answers: prompts.tokens(turn, block_tokens, number)


async def _report(load: Load, report: Callable[[int], None]) -> None:
    while True:
        report(sum(reply.state in ("done", "failed") for reply in load.replies))
        await asyncio.sleep(POLL_S)


def _run_of(load: Load, setup: Setup, workload: Workload, seed: int) -> Run:
    outcomes = [
        _outcome(f"r{number}", reply, load.started_s) for number, reply in enumerate(load.replies)
    ]
    first = [turn.at_s for turn in workload.turns]
    span_s = max(first, default=0.0) - min(first, default=0.0)
    return Run(
        setup.config.scheduler.policy,
        f"{setup.summary}, live",
        tuple(shard.id for shard in setup.shards()),
        workload.name,
        setup.profile.model,
        "measured",
        len(first) / span_s if span_s else inf,
        0.0,
        seed,
        outcomes,
        stopped_s=load.ended_s - load.started_s,
    )


def _outcome(name: str, reply: Reply, started_s: float) -> Outcome:
    outcome = Outcome(
        name,
        "",
        reply.sent_s - started_s,
        reply.prompt_tokens,
        reply.answer_tokens,
        reply.cached_tokens,
        error=reply.error,
        delays=[],
        sent_bytes={},
    )
    if reply.stamps_s:
        outcome.first_s = reply.stamps_s[0] - started_s
        outcome.ended_s = None if reply.error else reply.stamps_s[-1] - started_s
    if (usage := reply.details) is not None:
        sent = {kind: float(nbytes) for kind, nbytes in usage.exchange_bytes_by_purpose.items()}
        sent["deposit"] = float(usage.deposit_bytes or 0)
        sent["decode_q"], sent["decode_state"] = (
            float(usage.q_bytes or 0),
            float(usage.state_bytes or 0),
        )
        outcome.sent_bytes = {kind: nbytes for kind, nbytes in sent.items() if nbytes}
        outcome.degree, outcome.owner, outcome.epochs = usage.sp_degree, usage.owner, usage.epoch
    return outcome
