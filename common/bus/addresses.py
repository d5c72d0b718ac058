"""Addresses that services bind: IPv4 only."""

import socket

from sps2.common.errors import Invalid


def address_of(host: str) -> str:
    """The IPv4 address of a name. Raises Invalid if the name has none."""
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise Invalid(
            f"{host} has no IPv4 address here ({error}); IPv6 is not supported: give `host` an "
            "IPv4 address, or a name that has one",
            "host",
        ) from error
