"""What the bus and the gateway cost: an RPC's round trip, a token's way, tokens a second.

    python benchmarks/gateway.py [--streams 100] [--rate 20] [--tokens 200] [--calls 5000]

The gateway and the KV directory are real processes. Behind the gateway stand a scheduler and an
owner (`gateway_actors.py`) whose tokens cost nothing; they and the HTTP client share this process,
so a token's way, from the owner's hand to the client's, has this process's own delays in it.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from asyncio.subprocess import Process, create_subprocess_exec
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from sys import executable

import psutil
import uvloop
from gateway_actors import Actors
from record import write

from sps2.cli import ports
from sps2.common import config
from sps2.common.bus.peer import Peer, Server
from sps2.common.config import Cluster
from sps2.common.config import text as config_text
from sps2.common.errors import ServiceError
from sps2.common.messages import Describe, ListLeases
from sps2.services.run import About

START_S = 60.0
PROMPT = [1, 2, 3, 4]


async def main(given: argparse.Namespace) -> None:
    cluster = config.load(port=ports.free_base(), name="bench-gateway", model=given.model)
    actors = Actors()
    scheduler = Server([actors, About("scheduler", started=True)], cluster.bus)
    owner = Server([actors], cluster.bus)
    await scheduler.start(cluster.scheduler_address)
    actors.address = await owner.start("tcp://127.0.0.1:0")
    found: dict[str, object] = {"options": vars(given)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "cluster.toml"
            file.write_text(config_text.dump(cluster, "bench-gateway"), encoding="utf-8")
            async with service("kvdir", file, cluster.kvdir_address, cluster) as (_, peer):
                found["rpc_us"] = await rpc(peer, given.calls)
            async with service("gateway", file, cluster.gateway_address, cluster) as (process, _):
                url = cluster.host, cluster.gateway.port
                await burst(actors, url, 2, 20)
                actors.rate = given.rate
                for actors.in_step in (False, True):
                    name = "way_in_step_ms" if actors.in_step else "way_ms"
                    found[name] = await way(actors, url, given.streams, given.tokens)
                actors.rate = 0.0
                found["throughput"] = await throughput(
                    actors, url, given.streams, 5 * given.tokens, process
                )
    finally:
        await scheduler.close()
        await owner.close()
    print(f"written to {write('gateway', found)}")


@asynccontextmanager
async def service(
    name: str, file: Path, address: str, cluster: Cluster
) -> AsyncIterator[tuple[Process, Peer]]:
    """A process of the cluster that answers, and the way to it."""
    argv = (executable, "-m", f"sps2.services.{name}", "--config", str(file))
    process = await create_subprocess_exec(*argv)
    peer = Peer(address, cluster.bus, name)
    try:
        async with asyncio.timeout(START_S):
            while not await _answers(peer):  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(0.1)
        yield process, peer
    finally:
        await peer.close()
        process.terminate()
        await process.wait()


async def _answers(peer: Peer) -> bool:
    try:
        return (await peer.call(Describe(), 1.0)).state == "ready"
    except ServiceError:
        return False


async def rpc(peer: Peer, calls: int) -> dict[str, float]:
    """Round trips, one after the other, in microseconds."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        await peer.call(ListLeases(), 5.0)
        times.append(1e6 * (time.perf_counter() - start))
    return told(f"RPC round trip, us, {calls} calls", times)


async def way(actors: Actors, url: tuple[str, int], streams: int, tokens: int) -> dict[str, float]:
    """From the owner to the HTTP client, in milliseconds, at the owner's rate."""
    came = await burst(actors, url, streams, tokens)
    sent = sorted(actors.sent_s.values())
    times = [1e3 * (to - since) for since, to in zip(sent, came, strict=True)]
    how = "in step" if actors.in_step else "at any moment"
    what = f"a token's way, ms, {streams} streams of {actors.rate:g} tokens/s, {how}"
    return told(what, times)


async def throughput(
    actors: Actors, url: tuple[str, int], streams: int, tokens: int, gateway: Process
) -> dict[str, float]:
    """Tokens a second, by the clock and by the processor time that the gateway took."""
    process = psutil.Process(gateway.pid)
    before, start = sum(process.cpu_times()[:2]), time.perf_counter()
    count = len(await burst(actors, url, streams, tokens))
    took_s = time.perf_counter() - start
    cpu_s = sum(process.cpu_times()[:2]) - before
    found = {"tokens_per_s": count / took_s, "tokens_per_cpu_s": count / cpu_s}
    print(f"{count} tokens at once: " + json.dumps({k: round(v) for k, v in found.items()}))
    return found


async def burst(actors: Actors, url: tuple[str, int], streams: int, tokens: int) -> list[float]:
    """When each token came, sorted, of `streams` streams at once."""
    actors.sent_s.clear()
    body = {"prompt": PROMPT, "max_tokens": tokens, "stream": True, "ignore_eos": True}
    came = await asyncio.gather(*(stream(url, body) for _ in range(streams)))
    times = sorted(time_s for each in came for time_s in each)
    if len(times) != streams * tokens:
        raise SystemExit(f"{streams * tokens} tokens were asked for, {len(times)} came")
    return times


async def stream(url: tuple[str, int], body: dict[str, object]) -> list[float]:
    """When each token of an answer came; HTTP by hand, so that the client costs little."""
    reader, writer = await asyncio.open_connection(*url)
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {url[0]}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode())
    writer.write(content)
    times: list[float] = []
    rest = b""
    while data := await reader.read(1 << 16):
        now = time.perf_counter()
        *lines, rest = (rest + data).split(b"\n")
        times += [now for line in lines if line.startswith(b'data: {"id"')]
    writer.close()
    return times


def told(what: str, times: list[float]) -> dict[str, float]:
    found = {
        "median": statistics.median(times),
        "p99": statistics.quantiles(times, n=100)[98],
        "most": max(times),
    }
    print(f"{what}: " + json.dumps({name: round(value, 3) for name, value in found.items()}))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--rate", type=float, default=20.0, help="tokens per second and stream")
    parser.add_argument("--tokens", type=int, default=200, help="of each stream")
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--model", default="smollm2-135m", help="whose tokenizer it is")
    uvloop.run(main(parser.parse_args()))
