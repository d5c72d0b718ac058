"""A cluster that is not at its code's address any more is found by mDNS, and nobody else is."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest

from sps2.cli.join import command, entrance
from sps2.common import keys
from sps2.common.errors import Invalid, Refused
from sps2.common.keys.join_code import JoinCode
from sps2.common.messages.schema import schema_hash
from sps2.services.compatibility import VERSION
from sps2.services.joining import mdns
from sps2.services.joining.hello import Hello, listen

from .test_entrance import request

if TYPE_CHECKING:
    from .conftest import House

HOST = "127.0.0.1"


def moved(house: "House") -> JoinCode:
    """A code of the cluster from when it was at another port."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        return msgspec.structs.replace(house.code(), port=free.getsockname()[1])


def word(house: "House") -> Hello:
    """What the cluster says to everybody."""
    key = keys.cluster_key(house.cluster.bus)
    assert key is not None
    return Hello("here", VERSION, schema_hash(), key.public)


@asynccontextmanager
async def impostor(announced: Hello, said: Hello) -> AsyncIterator[int]:
    """Announces one thing, and says another, at the port that is returned."""
    server = await listen(HOST, 0, said)
    port = server.sockets[0].getsockname()[1]
    async with server, mdns.announced(HOST, port, announced):
        yield port


async def all_heard(*places: int) -> None:
    while not {*places} <= {each.port for each in await mdns.heard(0.5)}:
        pass


async def test_a_cluster_that_moved_is_found(
    house: "House", capsys: pytest.CaptureFixture[str]
) -> None:
    code = moved(house)
    async with house.open():
        await all_heard(house.cluster.joining.first_port)
        found = await asyncio.to_thread(entrance.find, code)
        assert (await entrance.admitted(found, request(code))).shards == ("mixed-3",)
    assert found.code.port == house.cluster.joining.first_port
    assert found.code.secret == code.secret
    assert f"found the cluster at {HOST}:{found.code.port}, by mDNS" in capsys.readouterr().err


async def test_another_cluster_at_the_old_address_is_passed_by(house: "House") -> None:
    code, other = house.code(), msgspec.structs.replace(word(house), key="9" * 40)
    server = await listen(HOST, 0, other)
    code = msgspec.structs.replace(code, port=server.sockets[0].getsockname()[1])
    async with server, house.open():
        await all_heard(house.cluster.joining.first_port)
        found = await asyncio.to_thread(entrance.find, code)
    assert found.code.port == house.cluster.joining.first_port


async def test_impostors_fail_in_words_and_the_next_is_tried(
    house: "House", capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has a key of its own; one repeats the cluster's, and has not the secret half."""
    monkeypatch.setattr(entrance, "REACH_S", 2.0)
    code, true = moved(house), word(house)
    other = msgspec.structs.replace(true, key="9" * 40)
    async with impostor(true, other) as one, impostor(true, true) as parrot:
        await all_heard(one, parrot)
        with pytest.raises(Refused, match=r"nothing listens at .* Nor was the cluster found"):
            await asyncio.to_thread(entrance.find, code)
        said = " ".join(capsys.readouterr().err.split())
        assert f"{HOST}:{one} is announced as the cluster: another cluster than the code's" in said
        assert f"{HOST}:{parrot} is announced as the cluster: nobody answers at tcp" in said
        async with house.open():
            await all_heard(house.cluster.joining.first_port)
            found = await asyncio.to_thread(entrance.find, code)
            assert found.code.port == house.cluster.joining.first_port
            assert (await entrance.admitted(found, request(code))).shards


async def test_announcements_of_other_keys_are_not_even_asked(house: "House") -> None:
    code = moved(house)
    asked = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.close()

    server = await asyncio.start_server(count, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    keys_of_others = ("9" * 40, '"' * 40, "#" * 40)  # the last two are none in Z85
    others = [msgspec.structs.replace(word(house), key=key) for key in keys_of_others]
    async with server, mdns.announced(HOST, port, others[0]):
        await all_heard(port)
        with pytest.raises(Refused, match="Nor was the cluster found"):
            await asyncio.to_thread(entrance.find, code)
    assert asked == 0
    assert not any(entrance._is_of(code, each) for each in others)


async def test_a_code_of_another_time_is_said_to_be_unknown(
    house: "House", capsys: pytest.CaptureFixture[str]
) -> None:
    code = moved(house)
    house.invitations.path.unlink()
    async with house.open():
        await all_heard(house.cluster.joining.first_port)
        with pytest.raises(Refused, match="Nor was the cluster found"):
            await asyncio.to_thread(entrance.find, code)
    assert "the code is not known there any more" in " ".join(capsys.readouterr().err.split())


def test_without_mdns_the_old_error_says_so(
    house: "House", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mdns, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"nothing listens at .*by mDNS either: zeroconf is not inst"):
        entrance.find(moved(house))


async def test_a_word_that_does_not_end_is_not_waited_for(
    house: "House", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entrance, "REACH_S", 0.5)

    async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.1)

    server = await asyncio.start_server(dribble, HOST, 0)
    code = msgspec.structs.replace(moved(house), port=server.sockets[0].getsockname()[1])
    async with server:
        with pytest.raises(Refused, match="cannot reach"):
            await asyncio.to_thread(entrance.find, code)


async def test_without_a_code_clusters_are_listed(
    house: "House", capsys: pytest.CaptureFixture[str]
) -> None:
    older = msgspec.structs.replace(word(house), sps2="0.0.1", name="older", key="8" * 40)
    async with house.open(), impostor(older, older) as port:
        first_port = house.cluster.joining.first_port
        await all_heard(first_port, port)
        await asyncio.to_thread(command._show_clusters)
    said = " ".join(capsys.readouterr().err.split())
    assert f"found by mDNS: here at {HOST}:{first_port}, SPS2 {VERSION}" in said
    assert f"older at {HOST}:{port}, SPS2 0.0.1; this machine has {VERSION}" in said


def test_where_clusters_cannot_be_listed_the_code_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mdns, "find_spec", lambda name: None)
    command._show_clusters()
    assert "cannot be listed: zeroconf is not installed" in " ".join(
        capsys.readouterr().err.split()
    )


def test_no_key_in_z85_has_no_fingerprint() -> None:
    from sps2.common.keys.join_code import fingerprint

    for key in ('"' * 40, "#" * 40):
        with pytest.raises(Invalid, match="is no CURVE key"):
            fingerprint(key)
