"""Four hosts from nothing to an answer, with one code and no list (Linux, root).

    python tests/acceptance/joining.py

Hosts are network namespaces round a switch. Only the first has the model, smollm2-135m; the others
get it over the network. Prints how long each step took, and what happens to a prompt when a host is
unplugged. Exits with an error if an answer differs.
"""

import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

from links_network import Network, inside, network  # noqa: E402

from sps2.common.api import Extension  # noqa: E402
from sps2.common.client import AsyncClient  # noqa: E402
from sps2.common.config import Bus  # noqa: E402
from sps2.common.models.pull import pull  # noqa: E402
from tests.e2e.joining import (  # noqa: E402
    JOINED,
    Process,
    code_in,
    outdated,
    released,
    states,
)

HOSTS = ("alpha", "beta", "gamma", "delta")
GATEWAY = "tcp://10.77.0.1:8001"
PROMPT = "In the beginning there was a network of four hosts. " * 60
ASKED: dict[str, Any] = {"max_tokens": 24, "temperature": 0, "ignore_eos": True}


def start(net: Network, folder: Path, stack: ExitStack, host: str, *arguments: object) -> Process:
    with inside(net.hosts[host]):
        process = Process(folder / host, *arguments)
    stack.callback(lambda: process.is_up and process.interrupt())
    return process


async def answered(client: AsyncClient, salt: str, cut: tuple[Network, str] | None = None) -> str:
    """An answer to the prompt; a host, if one is named, is unplugged while it is computed."""
    text, done = "", cut is None
    stream = client.complete_stream(PROMPT, cache_salt=salt, sps2=Extension(progress=True), **ASKED)
    async for chunk in stream:
        if cut is not None and not done and chunk.sps2 and chunk.sps2.progress.processed:
            net, host = cut
            net.cut(host)
            done = True
        text += "".join(choice.text for choice in chunk.choices)
    assert done, "the prompt was computed before a host could be unplugged"
    return text


async def main() -> None:
    model = pull("smollm2-135m", lambda *_: None)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        net = stack.enter_context(network(HOSTS))
        stack.enter_context(inside(net.hosts["alpha"]))
        (folder / "alpha" / "models").mkdir(parents=True)
        (folder / "alpha" / "models" / model.name).symlink_to(model)
        since_s = time.monotonic()

        def took(what: str) -> None:
            print(f"{time.monotonic() - since_s:6.1f} s  {what}", flush=True)

        up = start(
            net, folder, stack, "alpha", "up", "--invite", "--threads", 1, "--dtype", "float32"
        )
        code = code_in(up.until("spsctl join"))
        took("alpha is up, with a code")
        join = ("join", code, "--threads", 1)
        others = [start(net, folder, stack, host, *join) for host in HOSTS[1:3]]
        for host, other in zip(HOSTS[1:], others, strict=False):
            other.until(JOINED)
            took(f"{host} has joined, with the model")
        bus = Bus(keys=str(folder / "alpha" / "keys"))
        async with AsyncClient(GATEWAY, bus) as client:
            whole = await answered(client, "first")
            took(f"the first answer is there: {whole[:40]!r}")
            assert await answered(client, "unplugged", (net, "beta")) == whole
            took("beta was unplugged while a prompt was computed: the same answer")
            moved = ("join", outdated(code), "--threads", 1)
            start(net, folder, stack, "delta", *moved).until(JOINED)
            took("delta has joined, with a code of another address: it found the cluster by mDNS")
            assert await answered(client, "delta") == whole
            print(states(await released(client)))


if __name__ == "__main__":
    asyncio.run(main())
