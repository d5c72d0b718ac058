"""A cluster over hosts with addresses of their own, brought up over SSH."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sps2.common.client import Client

from .conftest import Launch
from .several_hosts import Machines, machines
from .test_cluster import LENGTHS, prompt_of, said

HOSTS = ("alpha", "beta", "gamma", "delta")
ROLES: dict[str, dict[str, object]] = {
    "alpha": {"services": ["gateway", "scheduler", "kvdir"]},
    "beta": {"prefill": 1},
    "gamma": {"prefill": 1, "decode": 1},
    "delta": {"decode": 1},
}
TOKENS = 12


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with machines(HOSTS, tmp_path_factory.mktemp("hosts")) as made:
        yield made


def answers(bus: str) -> list[list[str]]:
    with Client(bus) as client:
        return [
            said(
                client.complete(
                    prompt_of(length),
                    max_tokens=TOKENS,
                    temperature=0,
                    ignore_eos=True,
                    logprobs=0,
                )
            )
            for length in LENGTHS
        ]


@pytest.fixture(scope="module")
def single(launch: Launch) -> list[list[str]]:
    with launch("smollm2", "tcp") as running:
        return answers(running.bus)


@pytest.mark.parametrize("transport", ["tcp", "ucx"])
def test_answers_are_those_of_one_host(
    single: list[list[str]], hosts: Machines, checkpoint: Callable[[str], Path], transport: str
) -> None:
    config = hosts.folder / "cluster.toml"
    config.write_text(
        f'name = "far"\nmodel = "{checkpoint("smollm2")}"\ndtype = "float32"\nthreads = 1\n'
        f'transport = "{transport}"\n'
        "[scheduler]\nprefill_span_tokens = 16\ndecode_span_tokens = 64\n"
    )
    up = hosts.spsctl("up", "--detach", "--config", config, "--hosts", hosts.write_list(ROLES))
    try:
        assert up.returncode == 0, up.stderr
        status = json.loads(hosts.spsctl("status", "--json").stdout)
        addresses = {each["id"]: each["address"] for each in status["shards"]}
        assert addresses["prefill-0"].startswith(f"tcp://{hosts.network.hosts['beta'].address}:")
        assert {each["transport"] for each in status["shards"]} == {transport}
        assert answers("tcp://10.77.0.1:8001") == single
    finally:
        down = hosts.spsctl("down")
    assert down.returncode == 0
