"""The addresses of a service that binds every address of this machine."""

import socket

import psutil

EVERY = ("0.0.0.0", "::")


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
