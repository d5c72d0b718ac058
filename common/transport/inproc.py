"""The in-process backend: sends tensors between planes on the same loop or on several threads'."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from weakref import WeakValueDictionary

from sps2.common import messages
from sps2.common.errors import Invalid, PeerLost
from sps2.common.transport import frame as frames
from sps2.common.transport.credit import Consumed
from sps2.common.transport.interfaces import Behind, Link, Sink, Stale

_numbers = count(1)
_listening: "WeakValueDictionary[str, InprocBackend]" = WeakValueDictionary()
"""The listening planes of this process by address."""


class InprocBackend:
    """Copies tensors, so that sender and receiver own theirs, as with the other backends."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.peers: dict[str, InprocBackend] = {}
        self._address = ""
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self, host: str, port: int) -> str:
        self._loop = asyncio.get_running_loop()
        self._address = f"inproc://{next(_numbers)}"
        _listening[self._address] = self
        return self._address

    async def dial(self, peer: messages.Peer, generation: int) -> Link:
        name = peer.name
        other = _listening.get(peer.address)
        if other is None:
            raise PeerLost(name, f"cannot reach {name} at {peer.address}: nobody listens")
        try:
            await self.ask(other, lambda: other.admit(name, self, generation))
        except Stale as error:
            raise Behind(name, f"{name} refused the link: {error}", error.generation) from error
        except Invalid as error:
            raise PeerLost(name, f"{name} refused the link: {error}") from error
        self.peers[name] = other
        return InprocLink(name, self, other)

    def admit(self, name: str, dialler: "InprocBackend", generation: int) -> None:
        """Accept a link of `dialler`, on this backend's loop."""
        if name != self.sink.name:
            raise Invalid(f"{self.sink.name} listens here, not {name}")
        sink = dialler.sink
        self.sink.admit(messages.Peer(sink.name, dialler._address, sink.token), generation)
        self.peers[dialler.sink.name] = dialler

    def drop(self, peer: str) -> None:
        if other := self.peers.pop(peer, None):
            self._notify(other, "the link broke", goodbye=False)

    async def close(self) -> None:
        _listening.pop(self._address, None)
        for peer in list(self.peers):
            self._notify(self.peers.pop(peer), "it closed", goodbye=True)
            self.sink.gone(peer, "this side closed", goodbye=True)

    async def ask(self, other: "InprocBackend", work: Callable[[], None]) -> None:
        """Run `work` on the other backend's loop, and wait for it.

        Raises:
            PeerLost: the other backend's loop is closed.
            Invalid: raised by `work`.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def settle(error: Exception | None) -> None:
            if not done.done():
                done.set_exception(error) if error else done.set_result(None)

        def run() -> None:
            error: Exception | None = None
            try:
                work()
            except Invalid as refusal:
                error = refusal
            loop.call_soon_threadsafe(settle, error)

        try:
            other._call(run)
        except RuntimeError as error:
            raise PeerLost(other.sink.name, f"the loop of {other.sink.name} is closed") from error
        await done

    def post(self, work: Callable[[], None]) -> None:
        """Run `work` on this backend's loop without waiting; not if the loop is closed."""
        with suppress(RuntimeError):
            self._call(work)

    def _notify(self, other: "InprocBackend", reason: str, *, goodbye: bool) -> None:
        other.post(lambda: other._hear(self.sink.name, reason, goodbye=goodbye))

    def _hear(self, peer: str, reason: str, *, goodbye: bool) -> None:
        self.peers.pop(peer, None)
        self.sink.gone(peer, reason, goodbye=goodbye)

    def _call(self, work: Callable[[], None]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(work)


class InprocLink:
    """Passes copies to the other plane's loop."""

    def __init__(self, peer: str, near: InprocBackend, far: InprocBackend) -> None:
        self._peer = peer
        self._near = near
        self._far = far

    async def send(self, header: bytes, payload: Sequence[memoryview], consumed: Consumed) -> int:
        """See `links.Link`."""
        if self._peer not in self._near.peers:
            raise PeerLost(self._peer)
        frame = frames.decode(header)
        tensors = frames.allocate(frame)
        for tensor, view in zip(tensors, payload, strict=True):
            frames.as_bytes(tensor)[:] = view
        nbytes = len(header) + frame.nbytes
        source = self._near.sink.name

        def arrive() -> None:
            if source in self._far.peers:
                sink = self._far.sink
                wanted = tensors if sink.wants(frame) else None
                sink.deliver(source, frame, wanted, nbytes, partial(self._near.post, consumed))

        try:
            await self._near.ask(self._far, arrive)
        except PeerLost as error:
            self._near.sink.gone(self._peer, str(error))
            raise
        return nbytes
