"""Services of other versions are refused, and clocks apart are told of."""

import asyncio
import logging

import msgspec
import pytest

from sps2.common.bus.peer import Peer, Server
from sps2.common.config import Bus
from sps2.common.errors import Invalid
from sps2.common.messages import Greet, Greeted
from sps2.common.messages.schema import hash_of, schema_hash
from sps2.services import compatibility
from sps2.services.compatibility import VERSION, fits, greet
from sps2.services.run import About

BUS = Bus(heartbeat_s=20.0)


async def ask() -> float:
    """What a service hears of another in this process."""
    server = Server([About("scheduler")], BUS)
    peer = Peer(await server.start("tcp://127.0.0.1:0"), BUS, "scheduler")
    try:
        async with asyncio.timeout(60):
            return await greet(peer, "prefill-1", 60.0)
    finally:
        await peer.close()
        await server.close()


async def test_another_version_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Greet
    monkeypatch.setattr(
        compatibility, "Greet", lambda service, _, schema: real(service, "9.9.9", schema)
    )
    with pytest.raises(Invalid, match=r"prefill-1 is SPS2 9\.9\.9 .* and scheduler is ") as refused:
        await ask()
    assert f"scheduler is {VERSION} " in str(refused.value)
    assert "9.9.9" in caplog.text


def test_versions_that_differ_in_the_third_number_work_together() -> None:
    """A cluster is upgraded process by process."""
    first, second, *_ = VERSION.split(".")
    assert fits(f"{first}.{second}.99", schema_hash())
    assert not fits(f"{first}.{second}.99", "0f")
    assert not fits(f"{first}.{int(second) + 1}.0", schema_hash())


async def test_other_messages_of_the_same_version_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Greet
    monkeypatch.setattr(
        compatibility, "Greet", lambda service, version, _: real(service, version, "0f")
    )
    with pytest.raises(Invalid, match=r"\(messages 0f\) and scheduler is .*: install one version"):
        await ask()


def test_a_changed_field_changes_the_hash_and_a_docstring_does_not() -> None:
    class Before(msgspec.Struct):
        at_s: float

    class Described(msgspec.Struct):
        """Something."""

        at_s: float

    class Changed(msgspec.Struct):
        at_s: int

    hashes = []
    for kind in (Before, Described, Changed):
        kind.__name__ = "Before"
        hashes.append(hash_of([kind]))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("apart_s", "told"),
    [(0.0, ""), (30.0, "s ahead of the one here"), (-30.0, "s behind the one here")],
)
async def test_clocks(
    apart_s: float,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = Greeted
    monkeypatch.setattr(
        compatibility, "Greeted", lambda at_s, monotonic_s: real(at_s + apart_s, monotonic_s)
    )
    with caplog.at_level(logging.WARNING):
        ahead_s = await ask()
    assert ahead_s == pytest.approx(-apart_s, abs=5.0)  # on however busy a machine
    assert told in caplog.text
    assert bool(caplog.records) == bool(told)
