"""Finds out what answers at an address to which the bus cannot connect."""

import asyncio
import socket
from typing import Literal

from sps2.common.errors import PeerLost

Found = Literal["service", "HTTP", "else", "mute", "nobody"]
"""`mute` accepts and says nothing, as what forwards to a service that is away."""

WAIT_S = 1.0
ZMTP = b"\xff"
"""The first byte that a ZeroMQ socket sends."""


async def knock(address: str) -> Found:
    """Connect to a bus address over plain TCP, and see what answers; for a socket of this machine,
    whether a process listens, even if it stands still."""
    if not address.startswith("tcp://"):
        return "service" if _is_local_there(address) else "nobody"
    host, port = _parts(address)
    try:
        async with asyncio.timeout(WAIT_S):
            reader, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return "nobody"
    try:
        said = await _heard(reader)
        if not said:
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            said = await _heard(reader)
    finally:
        writer.close()
    if said.startswith(ZMTP):
        return "service"
    if not said:
        return "mute"
    return "HTTP" if said.startswith(b"HTTP/") else "else"


async def require_known(address: str, name: str) -> None:
    """Raise PeerLost if the host name of a bus address cannot be resolved."""
    if not address.startswith("tcp://"):
        return
    host, port = _parts(address)
    try:
        await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise PeerLost(name, f"the host {host!r} of {address} is not known: {why}") from error


def stranger(address: str, name: str, found: Found) -> PeerLost | None:
    """The error for an address where something else than a service answers; else None."""
    if found == "HTTP":
        return PeerLost(
            name,
            f"{address} speaks HTTP, so it is not the bus of a {name}: the HTTP API has a port of "
            "its own (8000, where the bus has 8001, unless the configuration says otherwise)",
        )
    if found == "mute":
        return PeerLost(
            name,
            f"what answers at {address} says nothing: the {name} behind it is away, or it is not "
            f"the bus of a {name}: see the port",
        )
    if found == "else":
        return PeerLost(name, f"what answers at {address} is not the bus of a {name}: see the port")
    return None


def unanswered(address: str, name: str, found: Found, waited_s: float) -> PeerLost:
    """The error for a connection that was not made within `waited_s` seconds."""
    if error := stranger(address, name, found):
        return error
    if found == "nobody":
        return PeerLost(
            name,
            f"nobody answers at {address} (tried for {waited_s:g} s): check that the cluster is "
            "up, that address and port are right, and that no firewall is between",
        )
    return PeerLost(name, f"the {name} at {address} did not answer within {waited_s:g} s")


def _is_local_there(address: str) -> bool:
    path = address.removeprefix("ipc://")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(f"\0{path[1:]}" if path.startswith("@") else path)
        except BlockingIOError:
            return True  # too many connections wait for it to accept them
        except OSError:
            return False
    return True


async def _heard(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(WAIT_S):
            return await reader.read(8)
    except TimeoutError:
        return b""
    except OSError:
        return b""


def _parts(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host.strip("[]"), int(port)
