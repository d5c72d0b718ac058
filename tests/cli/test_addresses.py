"""Where a cluster that binds every address can be reached."""

import socket
from types import SimpleNamespace

import psutil
import pytest

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


def test_containers_and_interfaces_that_are_down_lead_to_no_other_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def address(of: str) -> object:
        return SimpleNamespace(family=socket.AF_INET, address=of)

    found = {
        "lo": "127.0.0.1",
        "docker0": "172.17.0.1",
        "eth1": "10.9.0.1",
        "wlan0": "10.8.0.1",
        "eth0": "192.168.1.17",
    }
    state = {name: SimpleNamespace(isup=name != "eth1") for name in found}
    monkeypatch.setattr(
        psutil, "net_if_addrs", lambda: {name: [address(of)] for name, of in found.items()}
    )
    monkeypatch.setattr(psutil, "net_if_stats", lambda: state)
    monkeypatch.setattr(addresses, "_way_out", lambda: "192.168.1.17")
    assert addresses.reachable() == ["192.168.1.17", "10.8.0.1"]
    monkeypatch.setattr(addresses, "_way_out", str)
    assert addresses.reachable() == ["10.8.0.1", "192.168.1.17"]
