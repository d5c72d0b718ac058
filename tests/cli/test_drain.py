"""`spsctl drain` against a gateway that reports what a shard has left."""

from collections.abc import AsyncIterator

import pytest

from sps2.cli.drain import _drain
from sps2.common.bus.peer import Server
from sps2.common.config import Bus, Cluster, Gateway
from sps2.common.errors import PeerLost
from sps2.common.messages import Drain, Unfinished


class Draining:
    """A shard with two requests, which end one after the other; or the shard ends before them."""

    def __init__(self, ends: bool) -> None:
        self._ends = ends

    async def drain(self, request: Drain) -> AsyncIterator[Unfinished]:
        yield Unfinished(("one", "two"))
        yield Unfinished(("two",))
        if not self._ends:
            yield Unfinished(())


async def said(ends: bool, capsys: pytest.CaptureFixture[str]) -> list[str]:
    server = Server(Draining(ends), Bus())
    port = int((await server.start("tcp://127.0.0.1:0")).rpartition(":")[2])
    try:
        await _drain(Cluster(gateway=Gateway(bus_port=port)), "decode-1", 60.0)
    finally:
        await server.close()
    return capsys.readouterr().err.splitlines()


async def test_what_is_left_is_printed_where_no_terminal_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert await said(False, capsys) == [
        "draining decode-1: 2 requests left",
        "draining decode-1: 1 request left",
    ]


async def test_a_shard_that_ends_before_its_requests_is_not_called_drained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(PeerLost, match="decode-1 has ended, or drains no more"):
        await said(True, capsys)
