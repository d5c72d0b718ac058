"""Machines come and go by `spsctl join` while the cluster serves, on loopback."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sps2.cli import ports
from sps2.common import models
from sps2.common.client import AsyncClient
from sps2.common.config import Bus
from sps2.common.text.tokens import Tokenizer

from .joining import JOINED, Process, code_in, released, running, spsctl, states
from .test_cluster import expected, prompt_of, said

CONFIG = """
model = "tiny"
dtype = "float32"
threads = 1
transport = "tcp"
prefill = 0
decode = 0
mixed = 1
[scheduler]
prefill_span_tokens = 16
decode_span_tokens = 64
[sharing]
gflops = 1.0
link_latency_s = 0.0
"""
LONG: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "logprobs": 0, "temperature": 0}


def on(shards: int) -> dict[str, Any]:
    """Have so many machines compute a prompt, however slow one seems to be."""
    return {**LONG, "sps2": {"sp_degree": shards}}


@dataclass
class House:
    """The machine that was started first, whose folder has the others' homes beside it."""

    folder: Path
    model: Path
    up: Process
    gateway: str
    bus: Bus

    @property
    def first(self) -> Path:
        return self.folder / "first"

    def client(self) -> AsyncClient:
        return AsyncClient(self.gateway, self.bus)

    @contextmanager
    def joined(self, machine: str, code: str) -> Iterator[Process]:
        """A machine that has joined, and has left after the block."""
        with running(self.folder / machine, "join", code, "--threads", 1) as process:
            process.until(JOINED)
            yield process


@pytest.fixture(scope="module")
def house(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    first, port = folder / "first", ports.free_base()
    model = Path(shutil.copytree(checkpoint("smollm2"), first / "models" / "tiny"))
    config = folder / "cluster.toml"
    config.write_text(CONFIG)
    where = ("--config", config, "--host", "127.0.0.1", "--port", port)
    with running(first, "up", "--invite", *where) as up:
        up.until("spsctl join")
        gateway = f"tcp://127.0.0.1:{port + 1}"
        yield House(folder, model, up, gateway, Bus(keys=str(first / "keys")))


async def test_machines_come_are_unplugged_come_back_and_leave(house: House) -> None:
    code = code_in(house.up.output)
    tokenizer = Tokenizer(house.model)
    wanted = [tokenizer.token_text(each) for each in expected(house.model, prompt_of(300), 12)]
    async with house.client() as client:
        with house.joined("second", code) as machine:
            assert "mixed-1" in machine.output
            own = house.folder / "second" / "models" / "tiny"
            assert models.fingerprint(own) == models.fingerprint(house.model), "it was sent there"
            answer = await client.complete(prompt_of(300), **on(2) | {"max_tokens": 12})
            assert said(answer) == wanted

            whole = said(await client.complete(prompt_of(300), cache_salt="calm", **on(2)))
            stream = client.complete_stream(prompt_of(300), cache_salt="unplugged", **on(2))
            tokens = said(await anext(stream))
            (request,) = (await client.status()).requests
            assert {place.shard for place in request.placements} == {"mixed-0", "mixed-1"}
            machine.kill()
            async for chunk in stream:
                tokens += said(chunk) if chunk.choices else []
            assert tokens == whole
            status = await released(client)
            assert states(status) == {"mixed-0": "ready", "mixed-1": "lost"}
            assert (status.ready, status.missing, status.leaked_pages) == (True, "", 0)

        with house.joined("third", code) as another, house.joined("second", code) as back:
            assert "mixed-2" in another.output
            assert "mixed-1" in back.output, "it has the number that it had"
            again = await client.complete(prompt_of(300), cache_salt="three", **on(3))
            assert said(again) == whole

            stream = client.complete_stream(prompt_of(300), cache_salt="leaving", **on(3))
            tokens = said(await anext(stream))
            another.signal()
            async for chunk in stream:
                tokens += said(chunk) if chunk.choices else []
            assert tokens == whole
            assert chunk.usage is not None
            assert chunk.usage.sps2 is not None
            assert chunk.usage.sps2.epoch == 0, "it was finished, not begun anew"
            assert another.wait() == 0
            assert states(await client.status()) == {"mixed-0": "ready", "mixed-1": "ready"}
            assert not [*(house.folder / "third").rglob("cluster.key")]
            assert back.interrupt() == 0
        assert states(await client.status()) == {"mixed-0": "ready"}
        alone = await client.complete(prompt_of(300), cache_salt="alone", **on(1))
        assert said(alone) == whole


def listed(house: House) -> list[list[str]]:
    """The first words of each line of `spsctl invite --list`."""
    return [
        line.split()[:5] for line in spsctl(house.first, "invite", "--list").stdout.splitlines()
    ]


def test_codes_are_made_listed_and_revoked(house: House) -> None:
    made = spsctl(house.first, "invite", "--expires", "2h", "--joins", "1")
    code = code_in(made.stdout)
    name = made.stdout.partition("--revoke ")[2].partition("`")[0]
    assert [name, "valid", "0", "of", "1"] in listed(house)
    assert spsctl(house.first, "invite", "--revoke", name).returncode == 0
    late = spsctl(house.folder / "fourth", "join", code)
    assert late.returncode == 1
    assert "error: the code was revoked" in late.stderr
    assert [name, "was", "revoked", "0", "of"] in listed(house)
    wrong = spsctl(house.first, "invite", "--revoke", "nobody")
    assert "there is no invitation 'nobody'" in wrong.stderr


def test_a_mistyped_code_is_refused_where_it_is_typed(house: House) -> None:
    code = code_in(house.up.output)
    wrong = code[:-1] + ("0" if code[-1] != "0" else "1")
    done = spsctl(house.folder / "fourth", "join", wrong)
    assert done.returncode == 1
    assert f"typing error in its 12th group, {wrong[-4:]}" in done.stderr


def test_an_address_of_another_machine_is_refused(house: House) -> None:
    code = code_in(house.up.output)
    done = spsctl(house.folder / "fourth", "join", code, "--host", "192.0.2.1")
    assert done.returncode == 1
    assert "192.0.2.1 is not an address of this machine" in done.stderr


def test_a_role_that_the_cluster_has_not_is_refused(house: House) -> None:
    done = spsctl(house.folder / "fourth", "join", code_in(house.up.output), "--prefill", "1")
    assert done.returncode == 1
    assert "prefill shards cannot join: this cluster's shards are mixed ones" in done.stderr
