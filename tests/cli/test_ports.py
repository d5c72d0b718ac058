"""Ports: whether they are free, and who has them."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sps2.cli import ports
from sps2.cli.runs import RunFolder
from sps2.common import config
from sps2.common.config import Cluster, Gateway
from sps2.common.errors import Invalid


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def with_http_port(port: int) -> Cluster:
    cluster = config.load(port=ports.free_base())
    return Cluster(
        gateway=Gateway(port=port, bus_port=cluster.gateway.bus_port),
        scheduler=cluster.scheduler,
        kvdir=cluster.kvdir,
        telemetry=cluster.telemetry,
    )


def test_free_ports_are_free() -> None:
    ports.require_free(config.load(port=ports.free_base()))


def test_a_taken_port_is_named_with_its_key_and_holder(taken: int) -> None:
    with pytest.raises(Invalid, match=rf"port {taken} \(gateway.port\).*process {os.getpid()} "):
        ports.require_free(with_http_port(taken))


def test_a_port_of_our_own_cluster_says_how_to_stop_it(
    taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))
    folder = RunFolder("mine")
    folder.prepare(with_http_port(taken))
    with folder.owned(), pytest.raises(Invalid, match="spsctl down --name mine"):
        ports.require_free(with_http_port(taken))


def test_one_port_for_two_keys_is_refused() -> None:
    with pytest.raises(Invalid, match=r"given twice: gateway.port and gateway.bus_port"):
        ports.require_free(Cluster(gateway=Gateway(port=8001)))


def test_each_gateway_has_a_port_on_the_bus(taken: int) -> None:
    several = {"processes": 3, "second_bus_port": taken}
    cluster = config.load(port=ports.free_base(), gateway=several)
    found = {use.service: use.port for use in ports.uses(cluster) if "bus" in use.key}
    assert [found["gateway.1"], found["gateway.2"]] == [taken, taken + 1]
    with pytest.raises(Invalid, match=rf"port {taken} \(gateway.second_bus_port\)"):
        ports.require_free(cluster)
    ports.require_free(config.load(port=ports.free_base(), gateway={"processes": 5}))


def test_an_ipv6_address_is_refused_before_anything_starts() -> None:
    with pytest.raises(Invalid, match=r"::1 has no IPv4 address here .* IPv6 is not supported"):
        ports.require_free(config.load(host="::1"))


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(Invalid, match="not an address of this machine"):
        ports.require_free(config.load(host="192.0.2.1"))


def test_one_http_port_in_a_file_moves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text("[gateway]\nport = 8900\n[kvdir]\nbus_port = 7000\n")
    cluster = config.load(path)
    assert cluster == config.load(path, port=8900)
    assert (cluster.gateway.port, cluster.gateway.bus_port, cluster.kvdir.bus_port) == (
        *(8900, 8901, 7000),
    )
    assert not {use.port for use in ports.uses(cluster)} & {
        use.port for use in ports.uses(Cluster())
    }
    assert config.load(path, port=9900).scheduler.bus_port == 9902


def test_a_conflict_says_what_to_change_in_a_file(taken: int) -> None:
    with pytest.raises(Invalid, match=r"--port, or this one with gateway\.port in the config"):
        ports.require_free(with_http_port(taken))
