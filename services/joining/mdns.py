"""The cluster on its network: announced by mDNS (RFC 6762, 6763), and heard by who wants to join.

What is announced is the first word that everybody hears who connects (`Hello`). What is heard is
only a hint where to ask: anybody on the network can announce anything.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from sps2.common.errors import Refused
from sps2.common.keys.join_code import fingerprint
from sps2.services.joining.hello import Hello

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncZeroconf

SERVICE = "_sps2._tcp.local."
GROUP = "224.0.0.251"
RESOLVE_S = 1.0
"""How long the details of an announcement may take to come."""
MOST = 32
"""Announcements that are read; anybody can send any number."""
LONGEST_NAME = 40
"""Characters of the cluster's name in that of its announcement, which has room for 63 bytes."""
EVERY = "0.0.0.0"

log = logging.getLogger(__name__)


class Heard(NamedTuple):
    """A cluster as somebody on the network announces it: not verified."""

    hello: Hello
    address: str
    port: int


def missing() -> str:
    """What this machine lacks for mDNS, in words; empty if nothing."""
    if find_spec("zeroconf") is None:
        return "zeroconf is not installed here (`pip install zeroconf`)"
    return ""


def described(host: str, port: int, hello: Hello) -> "ServiceInfo":
    """The announcement of a cluster: its first word, and the addresses and port where it is said.

    The names of machine and user are not in it.
    """
    from zeroconf import ServiceInfo

    mark = fingerprint(hello.key).hex()[:12]
    return ServiceInfo(
        SERVICE,
        f"{hello.name[:LONGEST_NAME]} {mark}.{SERVICE}",
        port=port,
        addresses=[socket.inet_aton(address) for address in _addresses(host)],
        properties=msgspec.to_builtins(hello),
        server=f"sps2-{mark}.local.",
    )


@asynccontextmanager
async def announced(host: str, port: int, hello: Hello) -> AsyncIterator[None]:
    """Announce a cluster on the networks of the address that it binds, within the block.

    Where that cannot be done the log says why. Nothing waits for it.
    """
    task = asyncio.create_task(_announce(host, port, hello))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})  # it says goodbye


async def _announce(host: str, port: int, hello: Hello) -> None:
    if why := missing():
        log.warning("not announced by mDNS: %s", why)
        return
    from zeroconf import Error

    try:
        info = described(host, port, hello)
        for address in _addresses(host):
            _require_multicast(address)
        async with _speaking(None if host == EVERY else _addresses(host)) as zeroconf:
            await (await zeroconf.async_register_service(info, allow_name_change=True))
            log.info("announced by mDNS as %s", info.name)
            await asyncio.get_running_loop().create_future()
    except (OSError, Error, RuntimeError, ValueError) as error:
        log.warning("not announced by mDNS: %s", error or type(error).__name__)


async def heard(seconds: float) -> tuple[Heard, ...]:
    """The clusters that are announced on this machine's networks, after so many seconds.

    Raises:
        Refused: this machine cannot ask; the message says why.
    """
    if why := missing():
        raise Refused(why)
    from zeroconf import Error, ServiceStateChange
    from zeroconf.asyncio import AsyncServiceBrowser

    asking: dict[str, asyncio.Task[list[Heard]]] = {}

    def on_change(
        zeroconf: "Zeroconf", service_type: str, name: str, state_change: "ServiceStateChange"
    ) -> None:
        is_there = state_change is not ServiceStateChange.Removed
        if is_there and name not in asking and len(asking) < MOST:
            asking[name] = asyncio.create_task(_resolved(zeroconf, name))

    try:
        async with _speaking() as zeroconf:
            browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[on_change])
            await asyncio.sleep(seconds)
            found = await asyncio.gather(*asking.values())
            await browser.async_cancel()
    except (OSError, Error, RuntimeError) as error:
        raise Refused(f"this machine cannot ask its network by mDNS: {error}") from None
    return tuple(dict.fromkeys(each for several in found for each in several))


@asynccontextmanager
async def _speaking(addresses: list[str] | None = None) -> "AsyncIterator[AsyncZeroconf]":
    """mDNS on the networks of these addresses of this machine, or on all, within the block."""
    from zeroconf import InterfaceChoice, IPVersion
    from zeroconf.asyncio import AsyncZeroconf

    zeroconf = AsyncZeroconf(addresses or InterfaceChoice.All, ip_version=IPVersion.V4Only)
    try:  # entered as a context it would stay open if it is cancelled while it starts
        yield zeroconf
    finally:
        await zeroconf.async_close()


async def _resolved(zeroconf: "Zeroconf", name: str) -> list[Heard]:
    """The addresses of an announcement; none if it is malformed, or its details do not come."""
    from zeroconf import Error, IPVersion
    from zeroconf.asyncio import AsyncServiceInfo

    try:
        info = AsyncServiceInfo(SERVICE, name)
        if not await info.async_request(zeroconf, 1000 * RESOLVE_S) or not info.port:
            return []
        hello = msgspec.convert(info.decoded_properties, Hello)
        return [
            Heard(hello, address, info.port)
            for address in info.parsed_addresses(IPVersion.V4Only)[:MOST]
        ]
    except (Error, msgspec.ValidationError, UnicodeDecodeError, ValueError) as error:
        log.info("an announcement cannot be read: %s", error)
        return []


def _require_multicast(address: str) -> None:
    """Raise OSError if the network of an address of this machine takes no multicast.

    `zeroconf` passes over some such networks without a word.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        member = socket.inet_aton(GROUP) + socket.inet_aton(address)
        try:
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        except OSError as error:
            raise OSError(f"{address} takes no multicast: {error.strerror}") from None


def _addresses(host: str) -> list[str]:
    """The IPv4 addresses that a service binds with `host`; OSError if there is none."""
    if host != EVERY:
        return [socket.gethostbyname(host)]
    import psutil

    return [
        each.address
        for addresses in psutil.net_if_addrs().values()
        for each in addresses
        if each.family == socket.AF_INET and not each.address.startswith("127.")
    ]
