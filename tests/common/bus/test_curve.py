"""The bus with keys: who gets in, who does not, and that the others are served all the while."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from sps2.common import keys
from sps2.common.bus.curve import Audience
from sps2.common.bus.peer import Peer, Server
from sps2.common.bus.telemetry import Heartbeat, Hub, Publisher, Subscriber
from sps2.common.config import Bus
from sps2.common.errors import Invalid, PeerLost
from sps2.common.keys import Key
from sps2.common.keys.invites import Invitations
from sps2.common.keys.join_code import pair_of
from sps2.common.keys.keyring import Keyring

from ...waiting import until
from .service import Echo, Hang, Keep, Service, Text, reached, served

ANY = "tcp://127.0.0.1:0"
PATIENCE_S = 90.0


class Keys:
    """A cluster's keys, with a client alice, and a stranger's."""

    def __init__(self, folder: Path) -> None:
        self.ring = Keyring(folder / "keys")
        self.ring.make("test")
        self.ring.add_client("alice", folder / "alice.key")
        self.cluster = Bus(keys=str(self.ring.folder))
        self.alice = Bus(keys=str(folder / "alice.key"))
        other = Keyring(folder / "other")
        other.make("other")
        self.other = Bus(keys=str(other.folder))
        self.ring.add_client("mallory", folder / "mallory.key")
        self.ring.revoke_client("mallory")
        self.revoked = Bus(keys=str(folder / "mallory.key"))
        self.none = Bus()

    def named(self, name: str) -> Bus:
        bus: Bus = getattr(self, name)
        return bus


@pytest.fixture
def some(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def open_to(audience: Audience, bus: Bus) -> AbstractAsyncContextManager[tuple[Service, Server]]:
    return served(bus, audience=audience)


async def test_services_and_clients_are_answered(some: Keys) -> None:
    async with open_to("clients", some.cluster) as (_, server):
        for bus in (some.cluster, some.alice):
            async with reached(server.address, bus) as peer:
                assert await peer.call(Echo("hello")) == Text("hello")


@pytest.mark.parametrize(
    ("who", "audience", "told"),
    [
        ("none", "clients", "this side has none"),
        ("other", "clients", "another cluster than this side's cluster key other"),
        ("revoked", "clients", "does not take the key of client mallory"),
        ("alice", "services", "does not take the key of client alice"),
    ],
)
async def test_others_are_told_why_not(some: Keys, who: str, audience: Audience, told: str) -> None:
    async with open_to(audience, some.cluster) as (service, server):
        async with reached(server.address, some.named(who)) as stranger:
            for _ in range(2):
                with pytest.raises(Invalid, match=told):
                    await stranger.call(Hang())
        async with reached(server.address, some.cluster) as friend:
            assert await friend.call(Echo("hello")) == Text("hello")
        assert not service.started
        assert server.counters["bad_handshakes"] + server.counters["bad_keys"] > 0


async def test_a_server_without_keys_is_no_place_for_keys(some: Keys) -> None:
    async with (
        open_to("clients", some.none) as (_, server),
        reached(server.address, some.alice) as peer,
    ):
        with pytest.raises(Invalid, match="it has no keys"):
            await peer.call(Echo("hello"))


async def test_a_client_let_in_later_gets_in(some: Keys, tmp_path: Path) -> None:
    async with open_to("clients", some.cluster) as (_, server):
        late = tmp_path / "late.key"
        some.ring.add_client("late", late)
        clients = some.ring.folder / "clients.json"
        known = clients.read_bytes()
        some.ring.revoke_client("late")
        async with reached(server.address, Bus(keys=str(late))) as peer:
            with pytest.raises(Invalid):
                await peer.call(Echo("hello"))
            clients.write_bytes(known)
            while True:
                try:
                    assert await peer.call(Echo("hello")) == Text("hello")
                    break
                except Invalid:
                    await asyncio.sleep(0.05)


async def test_a_revoked_client_loses_what_it_has(some: Keys) -> None:
    async with open_to("clients", Bus(heartbeat_s=0.2, keys=some.cluster.keys)) as (
        service,
        server,
    ):
        hasty = Bus(heartbeat_s=0.2, keys=some.alice.keys)
        async with (
            reached(server.address, hasty) as peer,
            reached(server.address, some.cluster) as friend,
        ):
            async with peer.stream(Keep("alice's")) as items:
                await anext(items)
                some.ring.revoke_client("alice")
                with pytest.raises(PeerLost):
                    await anext(items)
            await until(lambda: service.ended == ["alice's"])
            with pytest.raises((PeerLost, Invalid)):  # its connection may be there still
                await peer.call(Echo("hello"))
            with pytest.raises(Invalid, match="revoked"):
                await peer.call(Echo("hello"))
            assert await friend.call(Echo("hello")) == Text("hello")


async def test_recorded_bytes_of_the_bus_get_nothing(some: Keys) -> None:
    """Whoever recorded a whole session and says it again is not answered, and runs nothing."""
    recorded = bytearray()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, keep: bool) -> None:
        while data := await source.read(1 << 16):
            if keep:
                recorded.extend(data)
            sink.write(data)
        sink.close()

    async with open_to("clients", some.cluster) as (service, server), asyncio.TaskGroup() as group:
        host, port = server.address.removeprefix("tcp://").split(":")

        async def tap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            back, forth = await asyncio.open_connection(host, int(port))
            group.create_task(pump(reader, forth, True))
            group.create_task(pump(back, writer, False))

        wire = await asyncio.start_server(tap, "127.0.0.1", 0)
        tapped = f"tcp://127.0.0.1:{wire.sockets[0].getsockname()[1]}"
        alice = Peer(tapped, some.alice)
        async with alice.stream(Keep("secret")) as items:
            async for _ in items:
                break
        await alice.close()
        wire.close()
        await until(lambda: service.ended)
        assert service.started == ["secret"]
        assert b"secret" not in recorded

        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(recorded)
        answer = await reader.read()  # the server ends it
        writer.close()
        assert len(answer) < 500
        assert service.started == ["secret"]
        async with reached(server.address, some.alice) as peer:
            assert await peer.call(Echo("hello")) == Text("hello")


async def test_a_client_cannot_serve(some: Keys) -> None:
    with pytest.raises(Invalid, match="key of client alice: a service needs"):
        await Server(Service(), some.alice).start(ANY)


@contextmanager
def publishing(address: str, name: str, bus: Bus) -> Iterator[Publisher]:
    publisher = Publisher(address, name, bus)
    try:
        yield publisher
    finally:
        publisher.close()


async def heard(events: Subscriber, publishers: list[Publisher], names: set[str]) -> set[str]:
    """Who is heard until all of `names` were."""
    found: set[str] = set()

    async def repeat() -> None:
        while True:
            for publisher in publishers:
                publisher.heartbeat({})
            await asyncio.sleep(0.02)

    sending_heartbeats = asyncio.create_task(repeat())
    try:
        async for event in events:
            assert isinstance(event, Heartbeat)
            found.add(event.service)
            if names <= found:
                return found
    finally:
        sending_heartbeats.cancel()
    raise AssertionError


async def test_telemetry_comes_from_services_and_goes_to_clients(some: Keys) -> None:
    hub = Hub(ANY, ANY, Bus(heartbeat_s=0.05, keys=some.cluster.keys))
    async with asyncio.timeout(PATIENCE_S):
        publish, subscribe = await hub.start()
        with (
            publishing(publish, "decode-0", some.cluster) as decode,
            publishing(publish, "forger", some.alice) as forger,
            publishing(publish, "stranger", some.none) as stranger,
        ):
            everyone = [decode, forger, stranger]
            async with (
                Subscriber(subscribe, some.cluster) as service,
                Subscriber(subscribe, some.alice) as client,
                Subscriber(subscribe, some.other) as other,
                Subscriber(subscribe, some.none) as nobody,
            ):
                assert await heard(service, everyone, {"decode-0"}) == {"decode-0"}
                assert await heard(client, everyone, {"decode-0"}) == {"decode-0"}
                some.ring.revoke_client("alice")
                await _silent(client, everyone)
                await _drained(service, decode)
                for deaf in (other, nobody, client):
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(anext(deaf), 0.1)
        await hub.close()


async def _silent(events: Subscriber, publishers: list[Publisher]) -> None:
    """Until a subscriber hears nothing for a while, however much is said."""
    last_s = time.monotonic()
    while time.monotonic() - last_s < 1.0:
        for publisher in publishers:
            publisher.heartbeat({})
        try:
            await asyncio.wait_for(anext(events), 0.05)
            last_s = time.monotonic()
        except TimeoutError:
            continue


async def _drained(events: Subscriber, publisher: Publisher) -> None:
    """The hub is back: somebody who may hear does."""
    while True:
        publisher.heartbeat({})
        try:
            await asyncio.wait_for(anext(events), 0.05)
            return
        except TimeoutError:
            continue


async def test_the_invited_reach_what_is_for_them_alone_even_if_it_is_too_late(
    some: Keys, tmp_path: Path
) -> None:
    """Too late: a handler says so; a code that nobody made does not get as far."""
    invitations = Invitations(some.ring.folder)
    codes = {
        "valid": invitations.add(timedelta(hours=1), 1)[1],
        "expired": invitations.add(timedelta(0), 1)[1],
        "unknown": b"never made",
    }
    buses = {}
    for name, secret in codes.items():
        public, own = pair_of(secret)
        cluster = keys.read(some.ring.cluster).public
        path = tmp_path / f"{name}.key"
        keys.write_private(path, msgspec.json.encode(Key("client", name, public, own, cluster)))
        buses[name] = Bus(keys=str(path))
    async with open_to("invited", some.cluster) as (_, server):
        for bus in (buses["valid"], buses["expired"], some.cluster):
            async with reached(server.address, bus) as peer:
                assert await peer.call(Echo("let me in")) == Text("let me in")
                assert not peer.is_turned_away
        for bus in (buses["unknown"], some.alice):
            async with reached(server.address, bus) as peer:
                with pytest.raises(Invalid, match="does not take the key"):
                    await peer.call(Echo("let me in"))
                assert peer.is_turned_away
    audiences: tuple[Audience, ...] = ("services", "clients")
    for audience in audiences:
        async with (
            open_to(audience, some.cluster) as (_, server),
            reached(server.address, buses["valid"]) as peer,
        ):
            with pytest.raises(Invalid, match="does not take the key"):
                await peer.call(Echo("let me in"))
