"""What CURVE costs on the bus: round trips with and without keys, interleaved, in one process.

`python benchmarks/keys.py` prints a table; nothing is written.
"""

import argparse
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import uvloop

from sps2.common.bus.peer import Peer, Server
from sps2.common.config import Bus
from sps2.common.keys.keyring import Keyring
from sps2.common.messages import Request, Struct

SIZES = (16, 16 << 10, 1 << 20)


class Data(Struct, frozen=True):
    data: bytes


class Echo(Request[Data], frozen=True):
    data: bytes


class Service:
    async def echo(self, request: Echo) -> Data:
        return Data(request.data)


async def measure(calls: int, rounds: int) -> dict[tuple[str, int], list[float]]:
    """Seconds of every round trip, by whether there are keys and the bytes each way."""
    times: dict[tuple[str, int], list[float]] = {}
    with TemporaryDirectory() as home:
        ring = Keyring(Path(home) / "keys")
        ring.make("bench")
        async with AsyncExitStack() as stack:
            peers = {}
            for name, bus in (("plain", Bus()), ("keys", Bus(keys=str(ring.folder)))):
                server = Server([Service()], bus, audience="clients")
                peers[name] = Peer(await server.start("tcp://127.0.0.1:0"), bus)
                stack.push_async_callback(server.close)
                stack.push_async_callback(peers[name].close)
            for _ in range(rounds):
                for size in SIZES:
                    for name, peer in peers.items():
                        found = times.setdefault((name, size), [])
                        for _ in range(calls):
                            since_s = time.perf_counter()
                            await peer.call(Echo(bytes(size)))
                            found.append(time.perf_counter() - since_s)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100, help="in a row")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    times = uvloop.run(measure(options.calls, options.rounds))
    print("| bytes each way | without keys | with keys | ratio |")
    print("|---|---|---|---|")
    for size in SIZES:
        plain, keys = (1e6 * median(times[name, size]) for name in ("plain", "keys"))
        print(f"| {size} | {plain:.0f} us | {keys:.0f} us | {keys / plain:.2f} |")


if __name__ == "__main__":
    main()
