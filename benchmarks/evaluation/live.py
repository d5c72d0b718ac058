"""Six configurations of a cluster on this machine, each live and simulated."""

import asyncio
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sps2.cli.bench.accuracy import both
from sps2.cli.simulator.accuracy import Accuracy, accuracy
from sps2.cli.simulator.live import live_setup
from sps2.cli.simulator.outcomes import Outcome
from sps2.cli.simulator.profile import at
from sps2.cli.workload import sources
from sps2.cli.workload.requests import Workload
from sps2.common import config

SPSCTL = Path(sysconfig.get_path("scripts"), "spsctl")
MODEL = "smollm2-135m"
PORT = 18300
REQUESTS = 60
TURNS = 40
"""Requests of the agents' workload."""
PROFILE_S = 120
SCALE = 1 / 16
PASS_ROWS, PASS_S = 64, 0.1
"""Rates are for shards whose pass of so many rows takes so long; others get them in proportion, so
that a machine of any speed is about as busy."""


@dataclass(frozen=True)
class Configuration:
    """A cluster on this machine; shards have one thread each."""

    policy: str
    prefill: int = 0
    decode: int = 0
    mixed: int = 0
    chunk_tokens: int = 0

    @property
    def shape(self) -> str:
        return f"{self.mixed} mixed" if self.mixed else f"{self.prefill} + {self.decode}"

    @property
    def name(self) -> str:
        return f"{self.policy}, {self.shape}"

    def toml(self, number: int) -> str:
        """The configuration file."""
        return f"""
name = "evaluation-{number}"
model = "{MODEL}"
prefill = {self.prefill}
decode = {self.decode}
mixed = {self.mixed}
threads = 1
[gateway]
port = {PORT}
bus_port = {PORT + 1}
[scheduler]
bus_port = {PORT + 2}
policy = "{self.policy}"
chunk_tokens = {self.chunk_tokens}
[kvdir]
bus_port = {PORT + 3}
[telemetry]
publish_port = {PORT + 4}
subscribe_port = {PORT + 5}
"""


CONFIGURATIONS = (
    Configuration("sps2", 2, 2),
    Configuration("fcfs", 2, 2),
    Configuration("lars", 2, 2),
    Configuration("sps2", mixed=2),
    Configuration("sarathi", mixed=2, chunk_tokens=256),
    Configuration("sps2", 1, 1),
)


def _azure(seed: int, traces: Path | None, pace: float) -> Workload:
    rate = 2.0 * pace
    return sources.find("azure-conv", limit=REQUESTS, rate=rate, cv=1.0, scale=SCALE, seed=seed)


def _agents(seed: int, traces: Path | None, pace: float) -> Workload:
    file = "agents" if traces is None else str(traces / "agent_conversations.jsonl.gz")
    return sources.find(
        file,
        limit=TURNS,
        rate=0.2 * pace,
        scale=SCALE,
        longest=4000,
        longest_think_s=4.0,
        seed=seed,
    )


WORKLOADS: dict[str, Callable[[int, Path | None, float], Workload]] = {
    "Azure conversations x 1/16": _azure,
    "agents x 1/16": _agents,
}


def measured(seed: int, traces: Path | None = None) -> dict[str, Any]:
    """Run every configuration with every workload; a profile is made of each shape beforehand."""
    rows: list[dict[str, Any]] = []
    profiles: dict[str, Path] = {}
    pace = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number, configuration in enumerate(CONFIGURATIONS):
            file = Path(folder) / f"{number}.toml"
            file.write_text(configuration.toml(number), encoding="utf-8")
            with _up(file):
                cluster = config.load(file)
                if configuration.shape not in profiles:
                    profile = Path(folder) / f"{configuration.shape}.json"
                    _spsctl("profile", "--config", file, "-o", profile, "--seconds", PROFILE_S)
                    profiles[configuration.shape] = profile
                setup = asyncio.run(live_setup(cluster, profiles[configuration.shape]))
                pace = pace or PASS_S / at(setup.profile.pass_s, PASS_ROWS)
                for name, make in WORKLOADS.items():
                    workload = make(seed, traces, pace)
                    live, simulated, slower = both(cluster, setup, workload, 100 * seed + number)
                    found = accuracy(live, simulated)
                    rows.append(
                        {
                            "configuration": configuration.name,
                            "workload": name,
                            "slower": slower,
                            "failed": sum(bool(each.error) for each in live.outcomes),
                            "figures": [_as_dict(each) for each in found],
                            "requests": [
                                [_brief(each), _brief(other)]
                                for each, other in zip(
                                    live.outcomes, simulated.outcomes, strict=True
                                )
                            ],
                        }
                    )
                    print(rows[-1], file=sys.stderr, flush=True)
        made = {shape: path.read_text(encoding="utf-8") for shape, path in profiles.items()}
    return {
        "rows": rows,
        "pace": pace,
        "profiles": made,
        "ranking": {name: _ranking(rows, name) for name in WORKLOADS},
    }


def _brief(outcome: Outcome) -> list[float | None]:
    """Tokens of prompt and answer, when it came, TTFT and E2E."""
    return [
        outcome.prompt_tokens,
        outcome.answer_tokens,
        *(
            None if each is None else round(each, 4)
            for each in (outcome.arrived_s, outcome.ttft_s, outcome.e2e_s)
        ),
    ]


def _as_dict(each: Accuracy) -> dict[str, Any]:
    return {name: getattr(each, name) for name in each.__struct_fields__}


def _ranking(rows: Sequence[dict[str, Any]], workload: str) -> dict[str, Any]:
    """Whether the simulator ranks the configurations by mean TTFT as they are: Spearman's rho."""
    pairs = [
        (row["configuration"], each["live"], each["simulated"])
        for row in rows
        if row["workload"] == workload
        for each in row["figures"]
        if each["name"] == "mean TTFT, s"
    ]
    orders = [[name for name, *_ in sorted(pairs, key=lambda pair: pair[side])] for side in (1, 2)]
    count = len(pairs)
    squares = sum((orders[0].index(name) - orders[1].index(name)) ** 2 for name in orders[0])
    return {
        "live": orders[0],
        "simulated": orders[1],
        "spearman": 1 - 6 * squares / (count * (count**2 - 1)),
    }


@contextmanager
def _up(file: Path) -> Iterator[None]:
    _spsctl("up", "--config", file, "--detach")
    try:
        yield
    finally:
        _spsctl("down", "--name", config.load(file).name)


def _spsctl(*arguments: object) -> None:
    subprocess.run([str(SPSCTL), *map(str, arguments)], check=True, stdout=sys.stderr)
