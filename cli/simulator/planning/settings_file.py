"""The configuration of a candidate, as a file for `spsctl up --config`."""

import textwrap

from msgspec.structs import replace

from sps2.cli.simulator.planning.candidates import Candidate, Setups
from sps2.common.config import Cluster, Scheduler
from sps2.common.config.text import keys_of, tables_of

WIDTH = 98


def cluster_of(candidate: Candidate, setups: Setups) -> Cluster:
    """What is simulated, with the limits of a cluster that serves."""
    config = setups.of(candidate).config
    return replace(
        config,
        model=setups.name,
        device="cpu" if candidate.pool.profile else "cuda",
        scheduler=replace(config.scheduler, max_queue=Scheduler().max_queue),
    )


def written(candidate: Candidate, setups: Setups, notes: str) -> str:
    """TOML with every key that differs from its default. notes: comments at the top."""
    lines = [f"# {line}" for line in textwrap.wrap(notes, WIDTH)]
    cluster = cluster_of(candidate, setups)
    for (name, section), (_, usual) in zip(tables_of(cluster), tables_of(Cluster()), strict=True):
        own = {key.name: key.text for key in keys_of(usual)}
        found = [
            f"{key.name} = {key.text}" for key in keys_of(section) if key.text != own[key.name]
        ]
        if found:
            lines += ["", *([f"[{name}]"] if name else []), *found]
    return "\n".join(lines) + "\n"
