"""A TCP proxy before a service, whose connections can be cut, stalled and disturbed."""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from .behind_proxy import BEHIND, FRONT
from .frame_stream import FrameStream

READ_BYTES = 1 << 16


class Cut(Exception):
    """The connection is to be cut in the middle of a piece."""


Disturb = Callable[[list[bytes]], list[bytes]]
"""Changes the frames that are forwarded together, two at least; may raise Cut."""


@dataclass(eq=False)
class Pair:
    """One connection: to the dialler (`near`), and to the service (`far`)."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    dialler: str = ""
    """The shard that dials, on the data plane; empty elsewhere, and before its Hello."""

    def abort(self) -> None:
        """Cut it, without a goodbye."""
        for writer in (self.near, self.far):
            writer.transport.abort()


@dataclass
class Proxy:
    """Forwards connections to `port` of the service; the test disturbs them.

    Args:
        frames: whether these are links of the data plane, which can be disturbed frame by frame.
    """

    service: str
    port: int
    frames: bool = False
    pairs: set[Pair] = field(default_factory=set)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _refused: Callable[[str], bool] | None = None
    _disturb: Disturb | None = None

    async def start(self) -> None:
        self._open.set()
        self._server = await asyncio.start_server(self._accept, FRONT, self.port)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self, dialler: str = "") -> int:
        """Cut connections, all or those of one shard; returns how many."""
        cut = [pair for pair in self.pairs if not dialler or pair.dialler == dialler]
        for pair in cut:
            pair.abort()
        return len(cut)

    def stall(self) -> None:
        """Forward nothing, until `resume`."""
        self._open.clear()

    def refuse(self, dialler: str = "") -> None:
        """Cut connections, all or those of one shard, and new ones too, until `resume`."""
        self._refused = lambda name: not dialler or name == dialler
        self.cut(dialler)

    def disturb(self, change: Disturb) -> None:
        """Pass the next frames that come together through `change`, once."""
        self._disturb = change

    def resume(self) -> None:
        """Work as a plain proxy again."""
        self._open.set()
        self._refused = self._disturb = None

    async def _accept(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await self._carry(reader, near)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            near.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        if self._refused is not None and self._refused(""):
            return
        await self._open.wait()
        there, far = await asyncio.open_connection(BEHIND, self.port)
        pair = Pair(near, far)
        self.pairs.add(pair)
        ways = [
            asyncio.create_task(self._forth(reader, pair)),
            asyncio.create_task(self._back(there, pair)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            with suppress(TimeoutError):  # what was said before the end still arrives
                async with asyncio.timeout(0.2):
                    await asyncio.gather(*ways, return_exceptions=True)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self.pairs.discard(pair)
            pair.abort()

    async def _forth(self, reader: asyncio.StreamReader, pair: Pair) -> None:
        stream = FrameStream() if self.frames else None
        while data := await reader.read(READ_BYTES):
            pieces = [data] if stream is None else stream.feed(data)
            if stream is not None and not pair.dialler and pieces:
                found = re.search(rb"((?:prefill|decode|mixed)-\d+)/", pieces[0])
                pair.dialler = found[1].decode() if found else "?"
                if self._refused is not None and self._refused(pair.dialler):
                    return
            await self._open.wait()
            if self._disturb is not None and len(pieces) > 1:
                change, self._disturb = self._disturb, None
                try:
                    pieces = change(pieces)
                except Cut:
                    pair.far.write(pieces[0] + pieces[1][: len(pieces[1]) // 2])
                    await pair.far.drain()
                    return
            for piece in pieces:
                pair.far.write(piece)
            await pair.far.drain()
        if pair.far.can_write_eof():
            pair.far.write_eof()

    async def _back(self, reader: asyncio.StreamReader, pair: Pair) -> None:
        while data := await reader.read(READ_BYTES):
            await self._open.wait()
            pair.near.write(data)
            await pair.near.drain()
        if pair.near.can_write_eof():
            pair.near.write_eof()
