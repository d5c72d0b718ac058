"""The choice of a data plane backend, made before any of them is imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from sps2.common.errors import Invalid

if TYPE_CHECKING:
    from sps2.common.transport.interfaces import Backend, Sink

BackendName = Literal["ucx", "tcp", "inproc"]


RDMA = Path("/sys/class/infiniband")
"""Present if there is RDMA, the one thing that UCX gains: GPU tensors go through the host."""


class Choice(NamedTuple):
    """A backend, and in words why it was chosen."""

    backend: BackendName
    reason: str


def choose(
    configured: Literal["auto", "ucx", "tcp"], encryption: Literal["auto", "on", "off"] = "auto"
) -> Choice:
    """Choose UCX if there is RDMA and UCX works; else TCP.

    Without RDMA, UCX would itself use TCP, more slowly than the TCP backend (docs/benchmarks.md).
    A choice other than "auto" is followed, or refused. Links that are to be encrypted, whatever it
    costs, take TCP.

    Raises:
        Invalid: UCX is configured and does not work here.
    """
    if configured == "tcp":
        return Choice("tcp", "tcp, as configured")
    if configured == "auto" and encryption == "on":
        return Choice("tcp", "tcp, since ucx cannot encrypt")
    if configured == "auto" and not (RDMA.is_dir() and any(RDMA.iterdir())):
        return Choice("tcp", "tcp, since there is no RDMA here for ucx to use")
    from sps2.common.transport import ucx

    fault = ucx.find_fault()
    if not fault:
        return Choice("ucx", "ucx is installed and passed its loop-back check")
    if configured == "ucx":
        raise Invalid(f"UCX does not work here: {fault}; use --transport tcp", "transport")
    return Choice("tcp", f"ucx does not work here: {fault}")


def make_backend(name: BackendName, sink: Sink) -> Backend:
    """Make a backend that reports to `sink`; it listens after its `start`."""
    if name == "inproc":
        from sps2.common.transport.inproc import InprocBackend

        return InprocBackend(sink)
    if name == "tcp":
        from sps2.common.transport.tcp import TcpBackend

        return TcpBackend(sink)
    from sps2.common.transport.ucx import UcxBackend

    return UcxBackend(sink)
