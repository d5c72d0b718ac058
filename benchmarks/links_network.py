"""Hosts on one machine: network namespaces round a switch, each behind a link of a given speed."""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PREFIX = "sps2-links-"
"""Of the namespaces; this process's id and the host's name follow."""
DEVICE = "eth0"
"""A host's end of its link; the switch's end is named after the host."""
BURST_S, LEAST_BURST_BYTES = 1e-3, 1 << 17
"""How far a link may run ahead of its rate. A packet that the kernel has yet to segment is up to
64 KiB: with a smaller burst it would be cut in software, which takes time from the shards."""
QUEUE_MS = 50
"""What waits at the slow end of a link; the rest is dropped, as a switch does."""


class Unavailable(Exception):
    """This machine, or this user, cannot make network namespaces."""


@dataclass(frozen=True)
class Host:
    """One machine of the benchmark."""

    namespace: str
    address: str


class Network:
    """One host for each name; all can reach each other, and nothing else.

    The links are those of a switched network: full duplex, with their rate in each direction, and
    no latency beyond the queues'.
    """

    def __init__(self, names: Sequence[str]) -> None:
        own = f"{PREFIX}{os.getpid()}-"
        self._switch = f"{own}switch"
        self.hosts = {
            name: Host(f"{own}{name}", f"10.77.0.{number}") for number, name in enumerate(names, 1)
        }

    def build(self) -> None:
        """Raises Unavailable if it cannot be done here."""
        for program in ("ip", "tc"):
            if shutil.which(program) is None:
                raise Unavailable(f"there is no `{program}` here; it comes with iproute2")
        _run(f"ip netns add {self._switch}")
        _run(f"ip -n {self._switch} link add name bridge0 type bridge")
        _run(f"ip -n {self._switch} link set dev bridge0 up")
        for name, host in self.hosts.items():
            inside, outside = f"ip -n {host.namespace}", f"ip -n {self._switch}"
            _run(f"ip netns add {host.namespace}")
            _run(f"{inside} link add name {DEVICE} type veth peer name {name} netns {self._switch}")
            _run(f"{inside} address add {host.address}/24 dev {DEVICE}")
            _run(f"{inside} link set dev lo up")
            _run(f"{inside} link set dev {DEVICE} up")
            _run(f"{outside} link set dev {name} master bridge0 up")

    def shape(self, mbit_s: int, names: Collection[str] = ()) -> None:
        """Give links this rate, both ways: those of some hosts, or all. 0 takes the limit away."""
        burst = max(LEAST_BURST_BYTES, round(BURST_S * mbit_s * 1e6 / 8))
        limit = f"tbf rate {mbit_s}mbit burst {burst} latency {QUEUE_MS}ms"
        for name in names or self.hosts:
            host = self.hosts[name]
            for namespace, device in ((host.namespace, DEVICE), (self._switch, name)):
                queue = limit if mbit_s else "noqueue"
                _run(f"tc -n {namespace} qdisc replace dev {device} root {queue}")

    def cut(self, name: str) -> None:
        """Take a host's link down, at the switch: nothing on the host is told."""
        _run(f"ip -n {self._switch} link set dev {name} nomaster")

    def restore(self, name: str) -> None:
        """Bring a link up again that was `cut`."""
        _run(f"ip -n {self._switch} link set dev {name} master bridge0")

    def remove(self) -> None:
        """Remove all of it, however much was built."""
        made = set(_namespaces())
        for namespace in (self._switch, *(host.namespace for host in self.hosts.values())):
            if namespace in made:
                _run(f"ip netns delete {namespace}")


@contextmanager
def network(names: Sequence[str]) -> Iterator[Network]:
    """A network while the block runs. Raises Unavailable if there can be none here."""
    _remove_stale()
    made = Network(names)
    try:
        made.build()
        yield made
    finally:
        made.remove()


@contextmanager
def inside(host: Host) -> Iterator[None]:
    """This thread, and those that it starts, are on a host's network while the block runs."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{host.namespace}", os.O_RDONLY)
    try:
        _set_namespace(there)
        yield
    finally:
        _set_namespace(own)
        os.close(own)
        os.close(there)


def _set_namespace(descriptor: int) -> None:
    # os.setns needs Python 3.12
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _namespaces() -> list[str]:
    with suppress(FileNotFoundError):
        return [path.name for path in Path("/run/netns").iterdir()]
    return []


def _remove_stale() -> None:
    """Remove what a run left behind that was killed."""
    for name in _namespaces():
        pid = re.match(rf"{PREFIX}(\d+)-", name)
        if pid and not Path(f"/proc/{pid[1]}").exists():
            _run(f"ip netns delete {name}")


def _run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, encoding="utf-8")
    if done.returncode:
        raise Unavailable(
            f"hosts cannot be made here, which needs root and iproute2: `{command}` failed: "
            f"{done.stderr.strip()}"
        )
