"""A wire between two planes: it records what it carries, and disturbs records of TLS."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec

from sps2.common.messages import Peer
from sps2.common.transport.hello import parse

Disturb = Callable[[list[bytes]], list[bytes]]
"""Changes two records that follow each other; an empty one ends the connection."""

HEADER_BYTES = 5
APPLICATION_DATA = 0x17


class Wire:
    """Carries connections to a plane, which is `peer` to who dials through here."""

    def __init__(self, there: Peer) -> None:
        self.peer = there
        self.heard = bytearray()
        """All bytes, of both ways."""
        self.disturb: Disturb | None = None
        """For the next two records from dialler to acceptor, once."""
        self.backwards: list[bytes] = []
        """Records from acceptor to dialler."""
        self.first_answer: Callable[[bytes], bytes] = bytes
        """Changes the acceptor's first message, which is not within TLS."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._back: asyncio.StreamWriter | None = None

    def repeat_backwards(self) -> None:
        """Send the dialler the acceptor's last record again."""
        assert self._back is not None
        self._back.write(self.backwards[-1])

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection, until either side ends it."""
        there, far = await asyncio.open_connection(*parse(self.target))
        self._back = writer
        ways = [
            asyncio.create_task(self._forth(reader, far)),
            asyncio.create_task(self._answers(there, writer)),
        ]
        self._tasks.update(ways)
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for each in (far, writer):
            each.close()

    async def _forth(self, reader: asyncio.StreamReader, far: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while record := await self._record(reader):
                if self.disturb is not None and record[0] == APPLICATION_DATA:
                    disturb, self.disturb = self.disturb, None
                    for piece in disturb([record, await self._record(reader)]):
                        if not piece:
                            return
                        far.write(piece)
                else:
                    far.write(record)

    async def _answers(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            first = await there.read(4096)
            self.heard += first
            writer.write(self.first_answer(first))
            while record := await self._record(there):
                self.backwards.append(record)
                writer.write(record)

    async def _record(self, reader: asyncio.StreamReader) -> bytes:
        """One record of TLS; of what is none, whatever has come."""
        first = await reader.read(1)
        if first and not 0x14 <= first[0] <= APPLICATION_DATA:
            record = first + await reader.read(1 << 16)
        elif first:
            head = first + await reader.readexactly(HEADER_BYTES - 1)
            record = head + await reader.readexactly(int.from_bytes(head[-2:]))
        else:
            return b""
        self.heard += record
        return record

    @asynccontextmanager
    async def up(self) -> AsyncIterator["Wire"]:
        """The wire while the block runs."""
        self.target = self.peer.address
        server = await asyncio.start_server(self.carry, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        scheme = self.target.partition(":")[0]
        self.peer = msgspec.structs.replace(self.peer, address=f"{scheme}://127.0.0.1:{port}")
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
