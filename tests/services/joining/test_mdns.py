"""Clusters are announced by mDNS, on loopback here, with what anybody may know and no more."""

import asyncio
import getpass
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path

import msgspec
import pytest
from zeroconf.asyncio import AsyncZeroconf
from zmq.utils import z85

from sps2.common import keys
from sps2.common.config import Joining
from sps2.common.errors import Refused
from sps2.common.keys import Key
from sps2.services.joining import mdns
from sps2.services.joining.hello import Hello

from ...cli.join.conftest import make_house
from ...waiting import until

HOST = "127.0.0.1"
PORT = 5353


def word(name: str = "home", key: str = "x" * 40) -> Hello:
    return Hello(name, "1.0", "0123", key)


def announced(hello: Hello, port: int = 4000) -> AbstractAsyncContextManager[None]:
    return mdns.announced(HOST, port, hello)


async def heard(hello: Hello) -> tuple[mdns.Heard, ...]:
    """What is heard of a cluster, once it is."""
    while not (found := [each for each in await mdns.heard(0.5) if each.hello == hello]):
        pass
    return tuple(found)


@contextmanager
def packets() -> Iterator[list[bytes]]:
    """All that is sent by mDNS on loopback within the block."""
    seen: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(("", PORT))
        member = struct.pack("4s4s", socket.inet_aton(mdns.GROUP), socket.inet_aton(HOST))
        listening.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        listening.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(listening, lambda: seen.append(listening.recv(1 << 16)))
        try:
            yield seen
        finally:
            loop.remove_reader(listening)


async def test_who_listens_hears_the_first_word_and_where_it_is_said() -> None:
    hello = word("heard-of", "h" * 40)
    async with announced(hello, 4321):
        assert await heard(hello) == (mdns.Heard(hello, HOST, 4321),)
    found = await mdns.heard(0.5)
    assert hello not in [each.hello for each in found], "it said goodbye"


async def test_two_clusters_of_one_name_and_two_places_of_one_key_are_told_apart() -> None:
    one, other = word(key="1" * 40), word(key="2" * 40)
    async with announced(one, 4001), announced(other, 4002), announced(one, 4003):
        while await ports_of(one) != {4001, 4003}:
            pass
        assert await ports_of(other) == {4002}


async def ports_of(hello: Hello) -> set[int]:
    return {each.port for each in await heard(hello)}


async def test_nothing_secret_is_announced(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Not the cluster's secret key, nor a code's, nor who and what this machine is."""
    house = make_house(tmp_path / "keys", checkpoint("smollm2"))
    code = house.code()
    key = msgspec.json.decode(
        keys.read_private(keys.beside(house.cluster.bus, keys.CLUSTER)), type=Key
    )
    with packets() as seen:
        async with house.open():
            await until(lambda: any(key.public.encode() in each for each in seen))
    sent = b"".join(each for each in seen if key.public.encode() in each)
    assert b"here" in sent
    for secret in (
        key.secret.encode(),
        z85.decode(key.secret.encode()),
        code.secret,
        code.fingerprint,
        socket.gethostname().encode(),
        getpass.getuser().encode(),
        house.cluster.model.encode(),
        str(tmp_path).encode(),
    ):
        assert secret not in sent
    info = mdns.described(HOST, 4000, word())
    assert sorted(info.decoded_properties) == sorted(Hello.__struct_fields__)


async def test_a_cluster_may_stay_unannounced(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    house = make_house(tmp_path / "keys", checkpoint("smollm2"))
    quiet = Joining(house.cluster.joining.first_port, announce=False)
    house.cluster = msgspec.structs.replace(house.cluster, joining=quiet)
    loud = word("loud", "l" * 40)
    key = keys.cluster_key(house.cluster.bus)
    assert key is not None
    with packets() as seen:
        async with house.open(), announced(loud):
            await until(lambda: any(loud.key.encode() in each for each in seen))
    assert not any(key.public.encode() in each for each in seen)


async def test_what_cannot_be_read_is_passed_over() -> None:
    """Also names that would be folders elsewhere, or move a terminal's cursor."""
    odd = [
        {"name": "../../etc", "sps2": "1.0", "schema": "1", "key": "k" * 40},
        {"name": "home", "sps2": "\x1b[2J", "schema": "1", "key": "k" * 40},
        {"name": "home"},
        {},
    ]
    good = word("good", "g" * 40)
    infos = []
    for number, properties in enumerate(odd):
        info = mdns.described(HOST, 5000 + number, word(f"odd-{number}", f"{number}" * 40))
        info._set_properties(properties)
        infos.append(info)
    async with AsyncZeroconf([HOST]) as zeroconf, announced(good):
        for info in infos:
            await (await zeroconf.async_register_service(info))
        await heard(good)
        found = await mdns.heard(1.0)
    assert not {each.port for each in found} & {5000, 5001, 5002, 5003}


async def test_without_the_package_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mdns, "find_spec", lambda name: None)
    async with announced(word()):
        await until(lambda: caplog.records)
    assert "not announced by mDNS: zeroconf is not installed here" in caplog.text
    with pytest.raises(Refused, match="zeroconf is not installed here"):
        await mdns.heard(0.1)


async def test_without_a_network_a_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """An address of another machine stands for one whose network takes no multicast."""
    caplog.set_level(logging.WARNING, mdns.__name__)
    async with mdns.announced("192.0.2.7", 4000, word()):
        await until(lambda: caplog.records)
    assert "not announced by mDNS: 192.0.2.7 takes no multicast" in caplog.text
