"""What goes wrong in a run, drawn from its seed."""

import asyncio
import os
import random
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from .cluster import ProxiedCluster
from .proxy import Cut

KINDS = ("kill", "stop", "bus", "link", "disk")
"""Those that are drawn if nobody says otherwise: besides, there is `end`."""
SECONDS = (0.3, 1.0, 2.5, 6.0)
SERVICES = ("gateway", "scheduler", "kvdir")
LINKS = ("cut", "refuse", "stall", "truncate", "duplicate", "reorder")


@dataclass(frozen=True)
class Fault:
    """A fault: `kind` says what happens to `target`, a service, or a link to it from `source`."""

    after_s: float
    kind: str
    target: str
    lasts_s: float = 0.0
    source: str = ""

    def __str__(self) -> str:
        lasts = f" for {self.lasts_s} s" if self.lasts_s else ""
        source = f" from {self.source}" if self.source else ""
        return f"after {self.after_s:.2f} s: {self.kind} {self.target}{source}{lasts}"


def drawn(number: int, services: Sequence[str], kinds: Sequence[str], most: int = 3) -> list[Fault]:
    """The faults of the seed of this number: one, or up to `most`."""
    seed = random.Random(f"faults {number}")
    shards = [name for name in services if name not in SERVICES]
    faults = []
    for _ in range(seed.randint(1, most)):
        kind = seed.choice(kinds)
        after_s, lasts_s = 0.3 + 2.5 * seed.random(), seed.choice(SECONDS)
        if kind == "kill":
            faults.append(Fault(after_s, kind, seed.choice((*services, *shards))))
        elif kind == "end":
            others = [name for name in services if name != "gateway"]
            faults.append(Fault(after_s, kind, seed.choice(others)))
        elif kind == "stop":
            faults.append(Fault(after_s, kind, seed.choice((*services, *shards)), lasts_s))
        elif kind == "bus":
            how = seed.choice(("cut", "refuse", "stall"))
            faults.append(Fault(after_s, f"bus-{how}", seed.choice(services), lasts_s))
        elif kind == "link":
            target, source = seed.sample(shards, 2)
            how = seed.choice(LINKS)
            faults.append(Fault(after_s, f"link-{how}", target, lasts_s, source))
        else:
            faults.append(Fault(after_s, "disk", "all shards", lasts_s))
    return sorted(faults, key=lambda fault: fault.after_s)


async def happen(fault: Fault, cluster: ProxiedCluster) -> None:
    """Let a fault happen, and end."""
    await asyncio.sleep(fault.after_s)
    name, _, how = fault.kind.partition("-")
    if fault.kind in ("kill", "stop", "end"):
        await _signal(fault, cluster.pid(fault.target))
    elif name == "disk":
        cluster.disk_pause.write_text("0.2")
        await asyncio.sleep(fault.lasts_s)
        cluster.disk_pause.unlink(missing_ok=True)
    else:
        proxy = cluster.bus[fault.target] if name == "bus" else cluster.plane[fault.target]
        if how == "cut":
            proxy.cut(fault.source)
        elif how == "refuse":
            proxy.refuse(fault.source)
        elif how == "stall":
            proxy.stall()
        else:
            proxy.disturb(DISTURBED[how])
        await asyncio.sleep(fault.lasts_s)
        proxy.resume()


async def _signal(fault: Fault, pid: int) -> None:
    if not pid:
        return  # it is dead already, from an earlier fault
    with suppress(ProcessLookupError):
        if fault.kind != "stop":
            os.kill(pid, signal.SIGKILL if fault.kind == "kill" else signal.SIGTERM)
            return
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.lasts_s)
        finally:
            os.kill(pid, signal.SIGCONT)


def _truncated(pieces: list[bytes]) -> list[bytes]:
    raise Cut


DISTURBED: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "truncate": _truncated,
    "duplicate": lambda pieces: [pieces[0], pieces[1], pieces[1], *pieces[2:]],
    "reorder": lambda pieces: [pieces[0], *reversed(pieces[1:])],
}
