"""How fast the scheduler decides: events of many requests on many shards, with no I/O.

    python benchmarks/scheduler.py [--shards 256] [--policy sps2]

Half of the shards prefill, half decode. Requests come as fast as they are handled, and each has the
events of a whole life. A quarter of the prefill shards' number is prefilled at a time, and four
times as many decode as there are decode shards; --queue sets how many more wait. Printed are
decisions a second of one core: events handled, after each of which the policy decides.
"""

import argparse
import time
from collections import deque

from sps2.common.config import Scheduler, Sharing
from sps2.common.messages import Peer, PrefillOptions, Role, Room, Shard
from sps2.common.model.config import read
from sps2.common.models import locate
from sps2.services.scheduler.actions import Action, Launch
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import (
    Ended,
    Granted,
    Joined,
    Prefilled,
    Progressed,
    RoomSeen,
    Shareable,
    Submitted,
)
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.plan import Work
from sps2.services.scheduler.policies import POLICIES
from sps2.services.scheduler.schemes import Schemes

PAGES, PAGE_TOKENS = 1 << 16, 32
SIZES = (64, 200, 3000, 150, 90, 700)
"""Tokens of prompts, in turn."""


class Load:
    """Requests that go through all stages on a core."""

    def __init__(self, core: Core, shards: int, queue: int) -> None:
        self._core = core
        self._free = {f"decode-{index}": PAGES for index in range(shards // 2)}
        self._total = dict(self._free)
        self._prefilling: deque[str] = deque()
        self._decoding: deque[str] = deque()
        self._waiting = 0
        self._most_prefilling, self._most_decoding = shards // 8, 2 * shards
        self._most_waiting = queue
        self.events = 0
        self._next = 0

    def run(self, seconds: float) -> float:
        """Events a second."""
        since_s = time.perf_counter()
        while time.perf_counter() - since_s < seconds:
            if len(self._decoding) > self._most_decoding:
                self._take(self._handle(Ended(self._decoding.popleft())))
            elif len(self._prefilling) >= self._most_prefilling and not (
                self._waiting < self._most_waiting
            ):
                self._decode(self._prefilling.popleft())
            else:
                size = SIZES[self._next % len(SIZES)]
                work = Work(str(self._next), size, 64, PrefillOptions())
                self._next += 1
                self._waiting += 1
                self._take(self._handle(Submitted(work)))
        return self.events / (time.perf_counter() - since_s)

    def _handle(self, event: object) -> list[Action]:
        self.events += 1
        return self._core.handle(event, time.perf_counter())  # type: ignore[arg-type]

    def _take(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Launch):
                self._waiting -= 1
                self._prefilling.append(action.request)
                self._take(self._handle(Granted(action.request, Room(self._free, self._total))))

    def _decode(self, request: str) -> None:
        self._take(self._handle(Progressed(request, PAGE_TOKENS)))
        for event in (Prefilled, Shareable):
            self._take(self._handle(event(request)))
        self._decoding.append(request)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=256)
    parser.add_argument("--queue", type=int, default=0)
    parser.add_argument("--policy", choices=POLICIES, default="sps2")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    half = options.shards // 2
    schemes = Schemes(read(locate(options.model)), 2, Sharing())
    core = Core(POLICIES[options.policy](Scheduler(), schemes), Fleet(half, half), 1 << 20)
    roles: tuple[Role, ...] = ("prefill", "decode")
    for role in roles:
        for index in range(half):
            name, pages = f"{role}-{index}", PAGES if role == "decode" else 0
            peer = Peer(f"{name}/0", f"tcp://10.0.0.{index}:1", bytes(16))
            shard = Shard(name, role, index, f"tcp://10.0.0.{index}:2", peer, pages, PAGE_TOKENS)
            core.handle(Joined(shard), 0.0)
    free = {f"decode-{index}": PAGES for index in range(half)}
    core.handle(RoomSeen(Room(free, dict(free))), 0.0)
    load = Load(core, options.shards, options.queue)
    load.run(0.5)
    load.events = 0
    print(f"{load.run(options.seconds):,.0f} decisions a second")


if __name__ == "__main__":
    main()
