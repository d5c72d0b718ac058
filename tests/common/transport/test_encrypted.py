"""What encrypting links is for: nobody on the way reads or changes them, or passes for another."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from sps2.common.errors import PeerLost
from sps2.common.keys import Key
from sps2.common.keys.keyring import Keyring
from sps2.common.transport import hello
from sps2.common.transport.backends import BackendName
from sps2.common.transport.frame import Frame, frame_for
from sps2.common.transport.hello import Hello
from sps2.common.transport.plane import Plane
from sps2.common.transport.proof import NONCE_BYTES

from .wire import HEADER_BYTES, Disturb, Wire

SECRET = b"nobody else may read that. " * 2
Got = list[tuple[int, Tensor]]


def payload(at: int, records: int) -> Tensor:
    """One that takes so many records of TLS, and that shows in what is recorded in the clear."""
    nbytes = (records - 1) * 16384 + 1000
    text = (SECRET * (nbytes // len(SECRET) + 1))[:nbytes]
    return torch.frombuffer(bytearray(text), dtype=torch.uint8) + at


async def send(plane: Plane, to: str, at: int, records: int = 1) -> None:
    tensors = (payload(at, records),)
    await plane.send(to, frame_for("kv", ("r",), (0,), 0, at, tensors), tensors)


@asynccontextmanager
async def planes(*made: Plane) -> AsyncIterator[Got]:
    """Starts planes; what the last one gets."""
    got: Got = []

    def take(source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        got.append((frame.at, tensors[0]))

    made[-1].serve("kv", take)
    async with asyncio.timeout(120):
        for plane in made:
            await plane.start()
        try:
            yield got
        finally:
            for plane in made:
                await plane.close()


async def until_counted(counter: str, *among: Plane) -> None:
    async with asyncio.timeout(60):
        while not all(plane.counters[counter] for plane in among):
            await asyncio.sleep(0.005)


def other_key(folder: Path) -> Key:
    return Keyring(folder / "other").make("test")


def flipped(record: bytes, at: int) -> bytes:
    return record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :]


ATTACKS: dict[str, Disturb] = {
    "a bit changed": lambda two: [flipped(two[0], HEADER_BYTES + 30), two[1]],
    "a tag changed": lambda two: [flipped(two[0], len(two[0]) - 1), two[1]],
    "a length changed": lambda two: [flipped(two[0], HEADER_BYTES - 1), two[1]],
    "dropped": lambda two: two[1:],
    "repeated": lambda two: [two[0], two[0], two[1]],
    "swapped": lambda two: two[::-1],
    "made up": lambda two: [two[0][:HEADER_BYTES] + bytes(len(two[0]) - HEADER_BYTES), *two],
    "in the clear": lambda two: [SECRET, *two],
    "cut within a record": lambda two: [two[0][: len(two[0]) // 2], b""],
    "ended after a record": lambda two: [two[0], b""],
}


@pytest.mark.parametrize("records", [1, 4])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
async def test_what_is_disturbed_ends_the_link_and_arrives_nowhere(
    attack: Disturb, records: int, cluster_key: Key
) -> None:
    a, b = (Plane(name, "tcp", key=cluster_key) for name in ("a/1", "b/1"))
    async with planes(a, b) as got, Wire(b.peer).up() as wire:
        a.introduce(wire.peer)
        await send(a, "b/1", 0)
        while not got:
            await asyncio.sleep(0.005)
        wire.disturb = attack
        sends = [send(a, "b/1", at, records) for at in range(1, 9)]
        await asyncio.gather(*sends, return_exceptions=True)
        await until_counted("peers_lost", a, b)
        assert [at for at, _ in got] == list(range(len(got)))
        for at, tensor in got:
            assert torch.equal(tensor, payload(at, records if at else 1))
        assert len(got) < 9
        before = len(got)

        a.introduce(wire.peer)
        await send(a, "b/1", 9, records)
        while len(got) == before:
            await asyncio.sleep(0.005)
        assert got[-1][0] == 9
        assert torch.equal(got[-1][1], payload(9, records))


async def test_a_changed_record_is_counted(cluster_key: Key) -> None:
    a, b = (Plane(name, "tcp", key=cluster_key) for name in ("a/1", "b/1"))
    async with planes(a, b), Wire(b.peer).up() as wire:
        a.introduce(wire.peer)
        await send(a, "b/1", 0)
        wire.disturb = ATTACKS["a bit changed"]
        await asyncio.gather(*(send(a, "b/1", at) for at in (1, 2)), return_exceptions=True)
        await until_counted("bad_frames", b)


async def test_receipts_are_protected_as_frames_are(cluster_key: Key) -> None:
    a, b = (Plane(name, "tcp", key=cluster_key) for name in ("a/1", "b/1"))
    async with planes(a, b), Wire(b.peer).up() as wire:
        a.introduce(wire.peer)
        await send(a, "b/1", 0)
        wire.repeat_backwards()
        await until_counted("peers_lost", a, b)


@pytest.mark.parametrize("scheme", ["tcp", "tcp+tls"])
async def test_who_listens_reads_nothing(key: Key | None) -> None:
    a, b = (Plane(name, "tcp", key=key) for name in ("a/1", "b/1"))
    async with planes(a, b) as got, Wire(b.peer).up() as wire:
        a.introduce(wire.peer)
        for at, records in enumerate((1, 4)):
            tensors = (payload(0, records),)
            await a.send("b/1", frame_for("kv", ("r",), (0,), 0, at, tensors), tensors)
        while len(got) < 2:
            await asyncio.sleep(0.005)
        nbytes = sum(tensor.nbytes for _, tensor in got)
        assert len(wire.heard) > nbytes
        for said in (SECRET, b"a/1", b"b/1", a.address.encode()):
            assert (said in wire.heard) is (key is None)
        for token in (a.token, b.token):
            assert token not in wire.heard


async def test_bytes_are_counted_alike(cluster_key: Key) -> None:
    counted = []
    for key in (None, cluster_key):
        a, b = (Plane(name, "tcp", key=key) for name in ("a/1", "b/1"))
        async with planes(a, b) as got:
            a.introduce(b.peer)
            for records in (1, 4):
                await send(a, "b/1", records, records)
            while len(got) < 2:
                await asyncio.sleep(0.005)
            counted.append((a.counters, b.counters, a.links, b.links))
    assert counted[0] == counted[1]


@pytest.mark.parametrize("backend", ["tcp", "ucx"])
async def test_keys_of_another_cluster_are_refused_on_both_sides(
    backend: BackendName, cluster_key: Key, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    a, b = Plane("a/1", backend, key=other_key(tmp_path)), Plane("b/1", backend, key=cluster_key)
    async with planes(a, b) as got:
        a.introduce(b.peer)  # with the token, which is not enough
        with pytest.raises(PeerLost, match="certificate is not of this cluster's key"):
            await send(a, "b/1", 0)
        await until_counted("bad_hellos", b)
        assert "does not take this side's certificate" in caplog.text
        assert not got


async def test_an_acceptor_checks_certificates_itself(cluster_key: Key, tmp_path: Path) -> None:
    """A dialler that trusts the other cluster is told why it is turned away."""
    a, b = (
        Plane("a/1", "tcp", key=other_key(tmp_path)),
        Plane("b/1", "tcp", key=cluster_key),
    )
    async with planes(a, b):
        assert a.identity
        assert b.identity
        (trusted,) = b.identity.dialling.get_ca_certs(binary_form=True)
        a.identity.dialling.load_verify_locations(cadata=trusted)
        with pytest.raises(PeerLost, match="does not take this side's certificate"):
            await hello.dial(b.peer, Hello("a/1", a.address, "tcp", a.token), a.identity)
        await until_counted("bad_hellos", b)


@pytest.mark.parametrize("backend", ["tcp", "ucx"])
async def test_a_name_belongs_to_a_certificate(backend: BackendName, cluster_key: Key) -> None:
    a, b, c = (Plane(name, backend, key=cluster_key) for name in ("a/1", "b/1", "c/1"))
    async with planes(a, c, b) as got:
        assert c.identity
        with pytest.raises(PeerLost, match="a certificate of c/1 is none of a/1"):
            await hello.dial(b.peer, Hello("a/1", a.address, backend, a.token, b"x"), c.identity)
        a.introduce(msgspec.structs.replace(b.peer, address=c.address, token=c.token))
        with pytest.raises(PeerLost, match=r"c/1 answers at .*, not b/1"):
            await send(a, "b/1", 0)
        a.introduce(b.peer)
        await send(a, "b/1", 0)
        while not got:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("dialler_has_keys", [False, True])
async def test_a_plain_and_an_encrypted_side_tell_each_other(
    dialler_has_keys: bool, cluster_key: Key, caplog: pytest.LogCaptureFixture
) -> None:
    """A plain side is as one of an older version, in what it sends."""
    caplog.set_level(logging.INFO)
    keys = (cluster_key, None) if dialler_has_keys else (None, cluster_key)
    a, b = (Plane(name, "tcp", key=key) for name, key in zip(("a/1", "b/1"), keys, strict=True))
    async with planes(a, b) as got:
        a.introduce(b.peer)
        with pytest.raises(PeerLost, match=r"encrypted.* `encryption` in its configuration"):
            await send(a, "b/1", 0)
        await until_counted("bad_hellos", b)
        assert "`encryption` in its configuration" in caplog.text
        assert not got


async def test_an_acceptor_of_an_older_version_is_refused(cluster_key: Key) -> None:
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def older(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = msgspec.msgpack.encode(["Challenge", bytes(NONCE_BYTES)])
        writer.write(hello._PREFIX.pack(hello.MAGIC, hello.VERSION, len(body)) + body)
        heard.set_result(await reader.read())
        writer.close()

    server = await asyncio.start_server(older, "127.0.0.1", 0)
    a, b = (Plane(name, "tcp", key=cluster_key) for name in ("a/1", "b/1"))
    async with server, planes(a, b):
        port = server.sockets[0].getsockname()[1]
        a.introduce(msgspec.structs.replace(b.peer, address=f"tcp://127.0.0.1:{port}"))
        with pytest.raises(PeerLost, match="of an older version"):
            await send(a, "b/1", 0)
        assert b"Refusal" in await heard
        assert a.name.encode() not in await heard


async def test_nobody_on_the_way_talks_both_out_of_it(cluster_key: Key) -> None:
    a, b = (Plane(name, "tcp", key=cluster_key) for name in ("a/1", "b/1"))
    async with planes(a, b) as got, Wire(b.peer).up() as wire:
        wire.first_answer = lambda said: said.replace(b"\xc3", b"\xc2")  # true, false
        a.introduce(wire.peer)
        with pytest.raises(PeerLost, match="are encrypted, and those to the other are not"):
            await send(a, "b/1", 0)
        assert a.name.encode() not in wire.heard
        assert not got
