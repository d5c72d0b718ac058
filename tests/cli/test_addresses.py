"""Where a cluster that binds every address can be reached."""

import socket

import psutil

from sps2.cli import addresses


def test_one_address_is_told_as_it_is() -> None:
    assert addresses.of("10.0.0.1") == ["10.0.0.1"]
    assert addresses.of("node-1") == ["node-1"]


def test_every_address_is_told_as_those_of_this_machine() -> None:
    own = {
        each.address
        for found in psutil.net_if_addrs().values()
        for each in found
        if each.family == socket.AF_INET
    }
    found = addresses.of("0.0.0.0")
    assert set(found) == own
    assert found[-1] == "127.0.0.1"
    with socket.create_server(("0.0.0.0", 0)) as server:
        for address in found:
            socket.create_connection((address, server.getsockname()[1]), 10).close()
