"""The addresses of this machine: where services listen, and where other machines reach it."""

import socket

import psutil

EVERY = ("0.0.0.0", "::")
ELSEWHERE = ("192.0.2.1", 9)
"""An address on no network (RFC 5737); asking for the way there sends nothing."""
INNER = ("lo", "docker", "br-", "veth", "virbr", "vmnet", "cni", "flannel", "cali")
"""How interfaces begin that lead to containers and virtual machines of this machine alone."""


def of(host: str) -> list[str]:
    """The addresses to show for a service that binds `host`, without 0.0.0.0 itself."""
    if host not in EVERY:
        return [host]
    found = [
        each.address
        for addresses in psutil.net_if_addrs().values()
        for each in addresses
        if each.family == socket.AF_INET
    ]
    return sorted(dict.fromkeys(found), key=lambda address: address.startswith("127.")) or [host]


def reachable() -> list[str]:
    """Addresses where other machines may reach this one, that of the usual way out first."""
    up = {name for name, each in psutil.net_if_stats().items() if each.isup}
    found = [
        each.address
        for name, addresses in psutil.net_if_addrs().items()
        for each in addresses
        if each.family == socket.AF_INET and name in up and not name.startswith(INNER)
    ]
    usual = _way_out()
    return sorted(dict.fromkeys(found), key=lambda address: address != usual)


def _way_out() -> str:
    """This machine's address on the way to other networks; empty if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(ELSEWHERE)
        except OSError:
            return ""
        return str(probe.getsockname()[0])
