"""A cluster over hosts with addresses of their own: brought up over SSH, with keys."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from sps2.common.client import Client
from sps2.common.config import Bus
from sps2.common.text.tokens import Tokenizer

from .several_hosts import Machines, machines
from .test_cluster import LENGTHS, expected, prompt_of, said

HOSTS = ("alpha", "beta", "gamma", "delta")
ROLES: dict[str, dict[str, object]] = {
    "alpha": {"services": ["gateway", "scheduler", "kvdir"]},
    "beta": {"prefill": 1},
    "gamma": {"prefill": 1, "decode": 1},
    "delta": {"decode": 1},
}
STAGES: dict[str, dict[str, object]] = {
    "alpha": {"services": ["gateway", "scheduler", "kvdir"], "mixed": 1},
    "beta": {"mixed": 1},
    "gamma": {"mixed": 1},
    "delta": {"mixed": 1},
}
GATEWAY = "tcp://10.77.0.1:8001"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with machines(HOSTS, tmp_path_factory.mktemp("hosts")) as made:
        done = made.spsctl("keys", "init")
        assert done.returncode == 0, done.stderr
        yield made


@pytest.fixture(scope="module")
def model(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("smollm2")


def answers(client: Client) -> list[list[str]]:
    asked = {"max_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 0}
    return [said(client.complete(prompt_of(length), **asked)) for length in LENGTHS]


@contextmanager
def spread(
    hosts: Machines,
    model: Path,
    transport: str,
    roles: Mapping[str, Mapping[str, object]] = ROLES,
    *more: object,
) -> Iterator[Bus]:
    """A cluster on all hosts; with what its clients reach it.

    Args:
        more: arguments of `spsctl up`.
    """
    config, keys = hosts.folder / "cluster.toml", hosts.folder / "home-launcher" / "keys"
    config.write_text(
        f'name = "far"\nmodel = "{model}"\ndtype = "float32"\nthreads = 1\n'
        f'transport = "{transport}"\n[scheduler]\nprefill_span_tokens = 16\n'
        "decode_span_tokens = 64\n"
    )
    listed = hosts.write_list(roles)
    arguments = "--config", config, "--hosts", listed, "--keys", keys
    up = hosts.spsctl("up", "--detach", *arguments, *more)
    try:
        assert up.returncode == 0, up.stderr
        yield Bus(keys=str(keys))
    finally:
        down = hosts.spsctl("down")
    assert down.returncode == 0
    assert "stopped" in down.stdout


def test_no_keys_no_cluster(hosts: Machines) -> None:
    up = hosts.spsctl("up", "--hosts", hosts.write_list(ROLES))
    assert up.returncode == 1
    assert "spsctl keys init" in up.stderr


@pytest.mark.parametrize(("transport", "shown"), [("ucx", "ucx"), ("tcp", "tcp+tls")])
def test_answers_are_those_of_transformers(
    hosts: Machines, model: Path, transport: str, shown: str
) -> None:
    """Over UCX, which chooses an interface besides, and over TCP, which is encrypted."""
    tokenizer = Tokenizer(model)
    wanted = [expected(model, prompt_of(length), 12) for length in LENGTHS]
    with spread(hosts, model, transport) as bus:
        status = json.loads(hosts.spsctl("status", "--json").stdout)
        addresses = {each["id"]: each["address"] for each in status["shards"]}
        assert addresses["prefill-0"].startswith(f"tcp://{hosts.network.hosts['beta'].address}:")
        assert {each["transport"] for each in status["shards"]} == {shown}
        assert shown in hosts.spsctl("status").stdout
        assert {each["service"] for each in status["services"]} >= {"gateway", "decode-1"}
        with Client(GATEWAY, bus) as client:
            assert answers(client) == [list(map(tokenizer.token_text, each)) for each in wanted]
        assert "decode-1" in hosts.spsctl("logs", "decode-1").stdout


def test_a_shard_whose_stages_are_on_two_hosts(hosts: Machines, model: Path) -> None:
    tokenizer = Tokenizer(model)
    wanted = [expected(model, prompt_of(length), 12) for length in LENGTHS]
    with spread(hosts, model, "tcp", STAGES, "--pp", 2) as bus:
        status = json.loads(hosts.spsctl("status", "--json").stdout)
        assert [each["id"] for each in status["shards"]] == ["mixed-0", "mixed-1"]
        assert {each["transport"] for each in status["shards"]} == {"tcp+tls"}
        addresses = {name: host.address for name, host in hosts.network.hosts.items()}
        followers = [each["followers"][0] for each in status["shards"]]
        for name, follower in zip(("beta", "delta"), followers, strict=True):
            assert follower.startswith(f"tcp://{addresses[name]}:")
        with Client(GATEWAY, bus) as client:
            assert answers(client) == [list(map(tokenizer.token_text, each)) for each in wanted]
