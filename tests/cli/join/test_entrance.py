"""The way in: with a good code, and every way in which one can be bad."""

import asyncio
import socket
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from sps2.cli.join import entrance, here
from sps2.common.errors import Invalid, Refused
from sps2.common.keys import Key
from sps2.common.keys.join_code import JoinCode
from sps2.common.keys.keyring import Keyring
from sps2.common.messages import Admission, JoinCluster
from sps2.services.joining import hello

from .conftest import House

MACHINE = "machine-one"


def request(code: JoinCode, machine: str = MACHINE, **counts: int) -> JoinCluster:
    return JoinCluster(code.secret, machine, "box", **counts)


async def join(code: JoinCode, machine: str = MACHINE, **counts: int) -> Admission:
    found = await asyncio.to_thread(entrance.find, code)
    return await entrance.admitted(found, request(code, machine, **counts))


async def test_a_machine_gets_all_that_it_needs(house: House) -> None:
    code = house.code()
    async with house.open():
        found = await asyncio.to_thread(entrance.find, code)
        admission = await join(code)
    assert (found.hello.name, found.own_address) == ("here", "127.0.0.1")
    key = msgspec.json.decode(admission.key, type=Key)
    assert (key.kind, key.public) == ("cluster", found.hello.key)
    assert admission.shards == ("mixed-3",), "0 to 2 are there"
    assert admission.model == Path(house.cluster.model).name
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= {
        file.name for file in admission.files
    }
    assert f'model = "{house.cluster.model}"' in admission.config


async def test_machines_get_different_shards_and_the_same_one_its_own(house: House) -> None:
    code = house.code()
    async with house.open():
        shards = [(await join(code, name)).shards for name in ("machine-a", "machine-b")]
        again = (await join(code, "machine-a", mixed=2)).shards
    assert shards == [("mixed-3",), ("mixed-4",)]
    assert again == ("mixed-3", "mixed-5")


async def test_who_leaves_is_not_missed_and_its_numbers_are_free(house: House) -> None:
    code = house.code()
    async with house.open():
        await join(code, "machine-a", mixed=2)
        await here.leave(house.cluster, "machine-a")
        assert house.scheduler.forgotten == ["mixed-3", "mixed-4"]
        assert (await join(code, "machine-b")).shards == ("mixed-3",)


async def test_codes_that_are_over_say_why(house: House) -> None:
    used, old, unwanted = (house.code(joins=1) for _ in range(3))
    over = house.code(timedelta(0))
    async with house.open():
        await join(used)
        await join(used)
        with pytest.raises(Invalid, match="used up: it was for 1 machine;"):
            await join(used, "machine-two")
        with pytest.raises(Invalid, match="the code has expired, 0 min ago"):
            await join(over)
        house.invitations.revoke([*house.invitations.all()][1])
        with pytest.raises(Invalid, match="the code was revoked"):
            await join(old)
        with pytest.raises(Invalid, match="prefill shards cannot join"):
            await join(unwanted, prefill=1)
        assert (await join(unwanted, "machine-two")).shards, "a refusal uses nothing up"


async def test_a_code_that_is_not_known_is_turned_away_before_it_can_ask(house: House) -> None:
    code = house.code()
    house.invitations.path.unlink()
    async with house.open():
        with pytest.raises(Invalid, match="not known there any more; `spsctl invite`"):
            await join(code)


async def test_a_code_is_no_key_of_the_cluster(house: House, tmp_path: Path) -> None:
    """Whoever has one can ask to join, and nothing else."""
    code = house.code()
    async with house.open():
        found = await asyncio.to_thread(entrance.find, code)
        elsewhere = JoinCode(code.address, code.port + 1, code.secret, code.fingerprint)
        with pytest.raises(Invalid, match="not known there"):
            await entrance.admitted(found._replace(code=elsewhere), request(code))


async def test_another_cluster_at_the_address_is_not_trusted(house: House, tmp_path: Path) -> None:
    code = house.code()
    Keyring(Path(house.cluster.bus.keys)).make("other", force=True)
    async with house.open():
        with pytest.raises(Invalid, match=r"another cluster than the code's answers at 127\.0"):
            await join(code)


@pytest.mark.parametrize("field", ["sps2", "schema"])
async def test_another_version_is_named(
    house: House, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = house.code()
    async with house.open():
        found = await asyncio.to_thread(entrance.find, code)
    other = msgspec.structs.replace(found.hello, **{field: "9.9"})
    server = await hello.listen("127.0.0.1", code.port, other)
    async with server:
        with pytest.raises(Invalid, match=r"the cluster is SPS2 .*9\.9.* install one version"):
            await asyncio.to_thread(entrance.find, code)


async def test_what_is_no_sps2_is_named(house: House) -> None:
    code = house.code()

    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(web, "127.0.0.1", code.port):
        with pytest.raises(Invalid, match=r"what answers at .* is not SPS2"):
            await asyncio.to_thread(entrance.find, code)


def test_nobody_there_names_the_address_and_firewalls(house: House) -> None:
    code = house.code()
    with pytest.raises(Refused, match=rf"nothing listens at 127\.0\.0\.1:{code.port}.*firewall"):
        entrance.find(code)


def test_no_way_there_names_the_address(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise TimeoutError("timed out")

    code = house.code()
    monkeypatch.setattr(socket, "create_connection", unreachable)
    with pytest.raises(Refused, match=r"cannot reach 127\.0\.0\.1:.*same network.*firewall"):
        entrance.find(code)


async def test_the_cluster_ends_between_hello_and_code(house: House) -> None:
    code = house.code()
    async with house.open():
        found = await asyncio.to_thread(entrance.find, code)
    with pytest.raises(Refused, match=rf"tried tcp://127\.0\.0\.1:{code.port + 1}"):
        await entrance.admitted(found, request(code))
