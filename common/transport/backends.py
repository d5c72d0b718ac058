"""Which way tensors move: the choice of a backend, made before any of them is imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from sps2.common.errors import Invalid

if TYPE_CHECKING:
    from sps2.common.transport.links import Backend, Sink

BackendName = Literal["ucx", "tcp", "inproc"]


RDMA = Path("/sys/class/infiniband")
"""What UCX drives and TCP does not. Tensors of a GPU come by way of the host: nothing for UCX."""


class Choice(NamedTuple):
    """A backend, and in words why it was taken."""

    backend: BackendName
    reason: str


def choose(asked: Literal["auto", "ucx", "tcp"]) -> Choice:
    """Take UCX where it has RDMA to drive, and works; TCP elsewhere.

    Without it UCX would use TCP itself, more slowly than we do (docs/benchmarks.md). A asked
    other than "auto" is followed or refused.

    Raises:
        Invalid: UCX was asked for and does not work here.
    """
    if asked == "tcp":
        return Choice("tcp", "tcp was asked for")
    if asked == "auto" and not (RDMA.is_dir() and any(RDMA.iterdir())):
        return Choice("tcp", "tcp, since there is no RDMA here for ucx to use")
    from sps2.common.transport import ucx

    fault = ucx.find_fault()
    if not fault:
        return Choice("ucx", "ucx is installed and passed its loop-back check")
    if asked == "ucx":
        raise Invalid(f"UCX does not work here: {fault}; use --transport tcp", "transport")
    return Choice("tcp", f"ucx does not work here: {fault}")


def make_backend(name: BackendName, sink: Sink) -> Backend:
    """A backend that reports to `sink`; nothing listens before its `start`."""
    if name == "inproc":
        from sps2.common.transport.inproc import InprocBackend

        return InprocBackend(sink)
    if name == "tcp":
        from sps2.common.transport.tcp import TcpBackend

        return TcpBackend(sink)
    from sps2.common.transport.ucx import UcxBackend

    return UcxBackend(sink)
