"""Restarts a cluster process by process under load: `python -m tests.chaos.rolling --rate 4`.

Streams begin at an even rate, over HTTP and the bus alternately, while `spsctl restart` runs; each
must have its whole answer, with the tokens of a run in peace.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from sps2.common import config
from sps2.common.client import AsyncClient

from . import load
from .cluster import SPANS, tiny

BANK = 16


async def spsctl(*arguments: str) -> tuple[int, str]:
    """Run a command; returns its exit status, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sps2.cli.main", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def under_load(
    address: str | Sequence[str],
    url: str,
    bank: Sequence[load.Known],
    every_s: float,
    work: Callable[[], Awaitable[tuple[int, str]]],
) -> tuple[int, str, list[load.Seen]]:
    """What `work` returns, and what became of the streams that began meanwhile."""
    working = asyncio.ensure_future(work())
    streams: list[asyncio.Task[load.Seen]] = []
    while not working.done():
        known = bank[len(streams) % len(bank)]
        plan = load.Plan(known, len(known.answer), 0.0, ("http", "bus")[len(streams) % 2])
        streams.append(asyncio.create_task(load.run(plan, address, url)))
        await asyncio.wait({working}, timeout=every_s)
    return *await working, await asyncio.gather(*streams)


def failed(seen: Sequence[load.Seen]) -> list[str]:
    """The streams that did not have their whole answer, in words."""
    return [
        f"{each.plan.way}: {each.end}: {each.message} {each.wrong}"
        for each in seen
        if each.end != "answer" or each.wrong
    ]


def _told(seen: Sequence[load.Seen], since_s: float) -> str:
    """What became of the streams: waits for the first token and pauses, in median and at most."""
    firsts = [(each.times_s[1] - each.times_s[0], each.times_s[1]) for each in seen]
    pauses = [
        max((b - a, b) for a, b in zip(each.times_s[1:], each.times_s[2:], strict=False))
        for each in seen
        if len(each.times_s) > 3
    ]
    parts = [f"{len(seen)} streams: {dict(Counter(each.end for each in seen))}"]
    for what, found in (("first token after", firsts), ("longest pause", pauses)):
        (most_s, at_s), usual_s = max(found), statistics.median(each_s for each_s, _ in found)
        parts.append(f"{what} {usual_s:.2f} s, at most {most_s:.2f} s (until {at_s - since_s:.1f})")
    return "; ".join(parts)


async def _run(cluster: config.Cluster, rate: float, services: Sequence[str]) -> int:
    async with AsyncClient(cluster.gateway_addresses) as client:
        bank = await load.known(client, BANK)
    since_s = time.monotonic()
    address, url = cluster.gateway_addresses, cluster.http_url
    status, output, seen = await under_load(
        address, url, bank, 1 / rate, lambda: spsctl("restart", *services)
    )
    print(output, end="")
    print(f"{time.monotonic() - since_s:.1f} s; {_told(seen, since_s)}")
    print("\n".join(failed(seen)))
    return status or bool(failed(seen))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.rolling", description=__doc__)
    parser.add_argument("services", nargs="*", help="to restart; none: as `spsctl restart`")
    parser.add_argument("--rate", type=float, default=4.0, help="streams a second")
    parser.add_argument("--prefill", type=int, default=2)
    parser.add_argument("--decode", type=int, default=3)
    parser.add_argument("--gateways", type=int, default=1, help="one alone is not restarted")
    parser.add_argument(
        "--drain-s", type=float, default=20.0, help="after which a shard hands its answers over"
    )
    arguments = parser.parse_args()
    with tiny(
        prefill=arguments.prefill,
        decode=arguments.decode,
        gateway={"processes": arguments.gateways},
        scheduler=SPANS | {"drain_s": arguments.drain_s},
    ) as cluster:
        return asyncio.run(_run(cluster, arguments.rate, arguments.services))


if __name__ == "__main__":
    sys.exit(main())
