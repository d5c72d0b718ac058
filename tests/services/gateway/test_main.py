"""The gateway as a process."""

import asyncio
import socket
import sys

import httpx
import pytest

from sps2.common.config import Cluster
from sps2.common.errors import Invalid
from sps2.common.tokens import Tokenizer
from sps2.services.gateway import http
from sps2.services.gateway.main import Parts, model_id, served_by
from sps2.services.run import About


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


def test_a_port_in_use_is_named():
    with http.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Invalid, match=f"{port}: the port is in use"):
            http.listen("127.0.0.1", port)


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


async def test_runs_as_a_process_until_it_is_told_to_end(folder, tmp_path):
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
            async with asyncio.timeout(20):
                while True:
                    try:
                        answer = await client.get("/ready")
                        break
                    except httpx.ConnectError:
                        await asyncio.sleep(0.02)
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
