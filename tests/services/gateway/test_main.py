"""The gateway as a process."""

import asyncio
import json
import shutil
import socket
import sys
import threading
import time
from contextlib import suppress

import httpx
import pytest
from starlette.responses import Response

from sps2.common.config import Cluster, Gateway, Telemetry
from sps2.common.errors import Invalid
from sps2.common.models import model_id
from sps2.common.text.tokens import Tokenizer
from sps2.services.gateway.http import server as http
from sps2.services.gateway.main import Parts, serve, served_by
from sps2.services.run import About

from .conftest import opened


def test_names_of_models(tmp_path):
    assert model_id("smollm2-135m") == "smollm2-135m"
    assert model_id("hf:org/name@main") == "org/name"
    assert model_id(str(tmp_path / "mine")) == "mine"
    assert model_id("some/where/model.gguf") == "model"


def test_serves_what_the_configuration_says(folder):
    tokenizer = Tokenizer(folder)
    served = served_by(Cluster(model=str(folder)), folder, tokenizer)
    assert (served.model, served.max_context, served.vocab_size) == ("tiny", 200, 260)
    assert served.eos_ids == (256,)
    assert served.kv_token_bytes == 3 * 2 * 2 * 2 * 4
    half = served_by(
        Cluster(model=str(folder), max_context=64, dtype="bfloat16"), folder, tokenizer
    )
    assert (half.max_context, half.kv_token_bytes) == (64, served.kv_token_bytes // 2)
    with pytest.raises(Invalid, match="max_context"):
        served_by(Cluster(model=str(folder), max_context=999), folder, tokenizer)


def test_a_wrong_model_is_told_every_name(folder):
    """Only the first of several was told."""
    tokenizer = Tokenizer(folder)
    named = Cluster(model=str(folder), served_model_name=["gpt-4", "mine", "big"])
    with pytest.raises(Invalid) as caught:
        served_by(named, folder, tokenizer).check_model("gpt-5")
    assert str(caught.value) == (
        "the model `gpt-5` does not exist; `gpt-4` is served here, also as `mine` and `big`; "
        "`served_model_name` in the configuration gives it more names"
    )
    with pytest.raises(Invalid, match=r"`tiny` is served here; `served_model_name`"):
        served_by(Cluster(model=str(folder)), folder, tokenizer).check_model("gpt-5")


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Invalid, match=f"{port}: the port is in use"):
            http.bind("127.0.0.1", port)


async def test_a_port_that_another_took_since_it_was_bound_is_named():
    listener = http.bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with socket.create_server(("127.0.0.1", port)), pytest.raises(Invalid, match=f"{port}: the po"):
        async with http.serving(None, listener, Gateway()):
            pass


async def test_a_gateway_that_cannot_start_gets_no_connections(door, folder):
    """The system gave it those that came while it loaded its tokenizer, and broke them then."""
    port, publish, subscribe = free_ports(3)
    settings = Gateway(port=port, bus_port=int(door.bus.rpartition(":")[2]))
    telemetry = Telemetry(publish_port=publish, subscribe_port=subscribe)
    cluster = Cluster(model=str(folder), gateway=settings, telemetry=telemetry)
    connected, ended = [], threading.Event()

    def connect():
        while not ended.is_set():
            with suppress(ConnectionRefusedError):
                connected.append(socket.create_connection(("127.0.0.1", port)))
            time.sleep(0.001)

    client = asyncio.create_task(asyncio.to_thread(connect))
    with pytest.raises(Invalid, match="the port is in use"):
        await serve(cluster, About("gateway"), asyncio.Event())
    ended.set()
    await client
    assert connected == []


async def test_a_gateway_that_starts_gets_no_connections_yet():
    """Of several on one port; each that came waited until it had started."""
    first = http.bind("127.0.0.1", 0, shared=True)
    port = first.getsockname()[1]
    async with http.serving(Response("x"), first, Gateway()):
        with http.bind("127.0.0.1", port, shared=True):
            for _ in range(40):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET / HTTP/1.0\r\n\r\n")
                async with asyncio.timeout(60):
                    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                writer.close()


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


async def test_a_bus_port_in_use_is_named(door, folder):
    second = Parts(Cluster(model=str(folder)), About("gateway"), folder)
    with pytest.raises(Invalid, match="the port is in use"):
        async with second.running(door.bus):
            pass


async def test_runs_as_a_process_until_it_is_told_to_end(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (left := tmp_path / "sps2-gateway-killed").mkdir()
    ports = free_ports(6)
    sections = ["gateway", "gateway", "scheduler", "kvdir", "telemetry", "telemetry"]
    keys = ["port", "bus_port", "bus_port", "bus_port", "publish_port", "subscribe_port"]
    config = dict.fromkeys(sections, "")
    for section, key, port in zip(sections, keys, ports, strict=True):
        config[section] += f"{key} = {port}\n"
    path = tmp_path / "cluster.toml"
    text = "\n".join(f"[{section}]\n{table}" for section, table in config.items())
    path.write_text(f"model = '{folder}'\n{text}")

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sps2.services.gateway", "--config", str(path)
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports[0]}") as client:
            async with asyncio.timeout(60):
                while True:
                    try:
                        answer = await client.get("/ready")
                        break
                    except httpx.ConnectError:
                        await asyncio.sleep(0.02)
            assert not left.exists()
            assert answer.status_code == 503
            assert "scheduler" in answer.json()["error"]["message"]
            second = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "sps2.services.gateway",
                "--config",
                str(path),
                stderr=asyncio.subprocess.PIPE,
            )
            _, errors = await second.communicate()
            assert second.returncode == 1
            assert f"{ports[0]}: the port is in use" in errors.decode()
            assert "Traceback" not in errors.decode()
    finally:
        process.terminate()
        assert await process.wait() == 0


@pytest.fixture
def advised(folder, tmp_path):
    """The model, with a recommendation of how to draw its tokens."""
    path = tmp_path / "advised"
    shutil.copytree(folder, path)
    wanted = {"temperature": 0.2, "top_p": 0.9, "top_k": 7, "repetition_penalty": 1.1}
    (path / "generation_config.json").write_text(json.dumps(wanted), encoding="utf-8")
    return path


async def drawn_as(door, **asked):
    async with httpx.AsyncClient(base_url=door.url) as client:
        answer = await client.post("/v1/completions", json={"prompt": "x", **asked})
        assert answer.status_code == 200
        models = (await client.get("/v1/models")).json()["data"]
    sampling = door.play.submitted[-1].sampling
    drawn = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.repetition_penalty)
    return drawn, models[0]["sampling_defaults"]


async def test_tokens_are_drawn_as_the_model_recommends(advised):
    async with opened(advised) as door:
        drawn, told = await drawn_as(door)
        assert drawn == (0.2, 0.9, 7, 1.1)
        assert told["top_k"] == 7
        assert (await drawn_as(door, temperature=1, top_k=-1))[0] == (1, 0.9, 0, 1.1)
    async with opened(advised, gateway=Gateway(sampling_defaults="openai")) as door:
        assert await drawn_as(door) == ((1, 1, 0, 1), {})


async def test_a_model_is_served_by_other_names(folder):
    async with (
        opened(folder, served_model_name=("gpt-4o", "o/mini")) as door,
        httpx.AsyncClient(base_url=door.url) as client,
    ):
        listed = (await client.get("/v1/models")).json()["data"]
        assert [each["id"] for each in listed] == ["gpt-4o", "o/mini"]
        assert (await client.get("/v1/models/o/mini")).json()["root"] == "gpt-4o"
        for name, status in (("gpt-4o", 200), ("o/mini", 200), ("tiny", 404)):
            answer = await client.post("/v1/completions", json={"model": name, "prompt": "x"})
            assert answer.status_code == status
            assert answer.json().get("model", "gpt-4o") == "gpt-4o"


def test_a_model_of_several_names_is_told_by_all_of_them(folder):
    cluster = Cluster(model=str(folder), served_model_name=("gpt-4", "mine"))
    served = served_by(cluster, folder, Tokenizer(folder))
    with pytest.raises(Invalid, match=r"`gpt-4` is served here, also as `mine`"):
        served.check_model("gpt-5")
