"""Runs policies in virtual time, on shards that take as long as the formulas say."""

from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from sps2.cli.simulator.profile import Profile
from sps2.cli.simulator.setup import Setup
from sps2.cli.simulator.simulation import Simulation
from sps2.cli.workload.requests import Turn, Workload
from sps2.common.config import Cluster, Kv, Scheduler, Sharing
from sps2.services.scheduler.schemes import Schemes

from .test_core import CONFIG, PAGE

SHARING = Sharing(gflops=0.02)
"""So slow that a prompt of 4,000 tokens takes seconds."""
SCHEMES = Schemes(CONFIG, 2, SHARING)
PAIR_S = SCHEMES.alone_s(2) - 2 * SCHEMES.alone_s(1)
TOKEN_S = SCHEMES.alone_s(1) - PAIR_S / 2
PROFILE = Profile(
    name="formulas",
    model="tiny",
    machine="made up",
    is_measured=False,
    sources={},
    margin=0.0,
    launch_s=0.0,
    pass_s=((1, TOKEN_S), (1000, 1000 * TOKEN_S)),
    pair_s=PAIR_S,
    share_s=0.0,
    step_s=((1, TOKEN_S),),
    key_s=PAIR_S,
    remote_s=0.0,
    link_gbit=SCHEMES.hardware.link_gbit,
    link_latency_s=SCHEMES.hardware.link_latency_s,
)


class Arrival(NamedTuple):
    at_s: float
    tokens: int
    caller: str = ""


def ttfts(
    policy: str, arrivals: Sequence[Arrival], shards: int = 2, chunk_tokens: int = 0
) -> list[float]:
    """Seconds from the arrival of each request to its first token, which is its last."""
    config = replace(
        Cluster(),
        prefill=shards,
        decode=1,
        scheduler=Scheduler(
            policy=policy,  # type: ignore[arg-type]
            chunk_tokens=chunk_tokens,
            max_queue=len(arrivals) + 1,
        ),
        kv=Kv(page_tokens=PAGE),
        sharing=SHARING,
    )
    order = sorted(range(len(arrivals)), key=lambda number: arrivals[number].at_s)
    turns = [
        Turn(at_s, tokens, 1, caller=caller)
        for at_s, tokens, caller in map(arrivals.__getitem__, order)
    ]
    setup = Setup(config, CONFIG, 2, PROFILE, pages=100_000)
    outcomes = Simulation(setup).run(Workload("arrivals", turns)).outcomes
    took = dict(zip(order, outcomes, strict=True))
    found = [took[number].ttft_s for number in range(len(arrivals))]
    assert None not in found, [outcome.error for outcome in outcomes]
    return [ttft_s for ttft_s in found if ttft_s is not None]


def slowdowns(policy: str, arrivals: Sequence[Arrival]) -> list[float]:
    """The time of each against what it takes alone."""
    alone = [ttfts(policy, [Arrival(0.0, each.tokens)])[0] for each in arrivals]
    return [took / least for took, least in zip(ttfts(policy, arrivals), alone, strict=True)]
