"""The data plane of a process: sends tensors to peers, and delivers those of peers."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from sps2.common import messages
from sps2.common.device import HOST, Device
from sps2.common.errors import Invalid, PeerLost
from sps2.common.keys import Key
from sps2.common.transport import frame as frames
from sps2.common.transport.backends import BackendName, make_backend
from sps2.common.transport.credit import Consumed, lane_of
from sps2.common.transport.frame import Frame, Purpose
from sps2.common.transport.frame_handlers import Deliver, FrameHandlers, Request
from sps2.common.transport.inbox import Inbox, Tensors
from sps2.common.transport.interfaces import Behind, Link, Stale
from sps2.common.transport.meter import Meter
from sps2.common.transport.once import Once, retrieve
from sps2.common.transport.peer_state import PeerState
from sps2.common.transport.proof import new_token

if TYPE_CHECKING:
    from sps2.common.transport.identity import Identity

MAX_PEERS = 4096
"""Maximum of peers that are remembered; beyond that the oldest lost ones are forgotten."""
DIALS = 8
"""Attempts to open a link while the other side, which dials too, begins new generations."""

Leaving = Callable[[], AbstractContextManager[None]]
"""A context that is entered when a frame has its credit, and left when the frame was sent."""

FAULTS = (
    "frames_dropped",
    "bad_frames",
    "bad_hellos",
    "accept_errors",
    "handler_errors",
    "peers_lost",
)
"""Counters that exist, as 0, from the start, so that monitoring sees the first count."""

_logger = logging.getLogger(__name__)


class Plane:
    """Sends and receives frames; used on one asyncio loop, like everything it calls.

    Args:
        name: unique to this run of this process, e.g. "prefill-0/3f2a91".
        backend: how bytes move; see `backends.choose`.
        device: of this process. Frames may be sent from it; they arrive on the host.
        key: of the cluster, if links are to be encrypted: those of all its planes, or of none. Over
            UCX only handshakes and receipts are. None: nothing is.
    """

    def __init__(
        self, name: str, backend: BackendName, device: Device = HOST, key: Key | None = None
    ) -> None:
        self.name = name
        self.backend = backend
        self.device = device
        self.token = new_token()
        self.identity = _identity(name, key)
        self.address = ""
        """The address for others to dial; known after `start`."""
        self.counters: Counter[str] = Counter(dict.fromkeys(FAULTS, 0))
        """Bytes on the wire by purpose as "kv_sent", "kv_received", ...; "frames_dropped", which
        nobody accepted, or whose sender cancelled them on the way; "bad_frames", "bad_hellos",
        "accept_errors", "handler_errors", "peers_lost", "ucx_rescues"."""
        self.links: dict[str, Counter[str]] = {}
        """Counters by peer: "sent" and "received" bytes, "frames_sent", "frames_received"."""
        self.meter = Meter()
        """How long large frames of peers take to arrive."""
        self._backend = make_backend(backend, self)
        self._peers: dict[str, PeerState] = {}
        self._handlers = FrameHandlers()
        self._on_lost: list[Callable[[str], None]] = []
        self._on_gone: list[Callable[[str], None]] = []
        self._returns = 0
        self._closing = False

    @property
    def peer(self) -> messages.Peer:
        """What other planes need to know of this one, for the control bus; after `start`."""
        return messages.Peer(self.name, self.address, self.token)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen on `host`; port 0 is any free port. Raises OSError."""
        self.address = await self._backend.start(host, port)

    async def close(self) -> None:
        """Say goodbye to all peers and end every link; sends under way may fail with PeerLost."""
        self._closing = True
        dialling = [peer.dialling for peer in self._peers.values() if peer.dialling is not None]
        for task in dialling:
            task.cancel()
        await asyncio.gather(*dialling, return_exceptions=True)
        await self._backend.close()
        for inbox in list(self._handlers.inboxes.values()):
            inbox.close()

    def introduce(self, peer: messages.Peer) -> None:
        """Set how to reach a peer, which may be repeated. A lost peer can be reached again."""
        known = self._peers.setdefault(peer.name, PeerState())
        known.peer, known.is_wanted = peer, True

    async def reach(self, peers: Sequence[messages.Peer]) -> None:
        """Introduce peers, and open links with those that were lost.

        Called before `open`, it ensures that no frame for the inbox is lost silently: peers learn
        that what they sent over links that this side had lost is void.

        Raises:
            PeerLost: a peer cannot be reached.
        """
        for peer in peers:
            self.introduce(peer)
        lost = [peer.name for peer in peers if self._peers[peer.name].gone]
        await asyncio.gather(*map(self._reach, lost))

    def forget(self, peer: str) -> None:
        """End all links with a peer, until one is opened again."""
        self._peers.setdefault(peer, PeerState())
        self.gone(peer, "this side forgot it", goodbye=True)
        self.links.pop(peer, None)

    def on_lost(self, callback: Callable[[str], None]) -> None:
        """Call `callback` at each loss of a peer: an established link broke without a goodbye."""
        self._on_lost.append(callback)

    def on_gone(self, callback: Callable[[str], None]) -> None:
        """Call `callback` at each end of a peer's links, with or without a goodbye."""
        self._on_gone.append(callback)

    def open(self, request: str, epoch: int) -> Inbox:
        """Open an inbox that keeps the frames of this request and epoch from now on.

        Frames of requests and epochs that are not open are read and dropped. A frame for several
        requests goes to the first of them that is open. If a peer is lost while the inbox is open,
        receiving from it fails even after it is back: a frame may be missing.
        """
        key = (request, epoch)
        assert key not in self._handlers.inboxes, f"{key} is open already"
        why_gone = partial(self._why_gone, self._returns)
        inbox = Inbox(why_gone, lambda: self._handlers.close(key))
        self._handlers.inboxes[key] = inbox
        return inbox

    def serve(
        self, purpose: Purpose, handler: Deliver, requests: Container[Request] | None = None
    ) -> None:
        """Pass every frame of this purpose to `handler`, on the loop, instead of to inboxes.

        Args:
            requests: (request, epoch) pairs whose frames are accepted, looked up when a frame
                comes; other frames are read and dropped. None accepts all.
        """
        self._handlers.handlers[purpose] = handler, requests

    async def send(
        self,
        peer: str,
        frame: Frame,
        tensors: Sequence[Tensor],
        leaving: Leaving = nullcontext,
    ) -> None:
        """Send a frame; returns when `tensors` may be overwritten. The first send dials.

        The tensors may be on the host or the device, and need not be contiguous. A frame waits
        while too much is unread at the peer (see `credit`); then it leaves, within `leaving`.

        Frames of one purpose and request to one peer arrive in the order of the calls; others may
        overtake each other. After a cancelled call the tensors may be overwritten at once too: the
        frame arrives whole, or not at all.

        Raises:
            PeerLost: the peer cannot be reached, was lost, or closed. It stays lost until it is
                introduced again, or opens a link itself.
            Invalid: a tensor is not as in the frame, or they are too large for a frame.
        """
        await self._send(peer, frame, partial(self.device.down, tensors), leaving)

    async def send_all(
        self,
        peers: Sequence[str],
        frame: Frame,
        tensors: Sequence[Tensor],
        leaving: Leaving = nullcontext,
    ) -> None:
        """Send a frame to several peers; the tensors are copied to the host once for all of them.

        As `send`, with `leaving` for each peer. The first failure cancels the other sends.
        """
        once = Once(partial(self.device.down, tensors))
        try:
            async with asyncio.TaskGroup() as group:
                for peer in peers:
                    group.create_task(self._send(peer, frame, once.get, leaving))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _send(
        self,
        peer: str,
        frame: Frame,
        bring: Callable[[], Awaitable[Sequence[Tensor]]],
        leaving: Leaving,
    ) -> None:
        header = frames.encode(frame)
        credit = self._known(peer).credit
        turn = await credit.turn(lane_of(frame), len(header) + frame.nbytes)
        with leaving():
            with turn:
                payload = frames.payload(frame, await bring())
                link = await self._reach(peer)
            nbytes = await link.send(header, payload, turn.consumed)  # queued before the next turn
        self.counters[f"{frame.purpose}_sent"] += nbytes
        self._count(peer, "sent", nbytes)

    @property
    def unread_bytes(self) -> int:
        """Bytes of frames that this side has sent and that have no receipt yet."""
        return sum(peer.credit.unread_bytes for peer in self._peers.values())

    @property
    def queued_bytes(self) -> int:
        """Bytes of received tensors that are unread."""
        return sum(inbox.queued_bytes for inbox in self._handlers.inboxes.values())

    def _known(self, name: str) -> PeerState:
        """A peer that is not known to be lost. Raises PeerLost."""
        peer = self._peers.get(name)
        if peer is None or self._closing:
            raise PeerLost(name, "this side closed" if self._closing else f"{name} is not known")
        if peer.peer is None or (peer.gone and not peer.is_wanted):
            raise PeerLost(name, peer.gone or f"{name} is not known")
        return peer

    async def _reach(self, name: str) -> Link:
        peer = self._known(name)
        if peer.link is not None:
            return peer.link
        if peer.dialling is None:
            assert peer.peer is not None
            peer.dialling = asyncio.create_task(self._dial(peer, peer.peer), name=f"dial {name}")
            peer.dialling.add_done_callback(retrieve)
        dialling = peer.dialling
        try:
            return await asyncio.shield(dialling)
        except asyncio.CancelledError:
            if dialling.cancelled():
                raise PeerLost(name, peer.gone) from None
            raise

    async def _dial(self, peer: PeerState, there: messages.Peer) -> Link:
        try:
            for attempts_left in reversed(range(DIALS)):
                try:
                    peer.link = await self._backend.dial(there, peer.generation)
                    break
                except Behind as behind:
                    is_over = peer.is_linked and peer.generation < behind.generation
                    if is_over:
                        self.gone(there.name, "it has lost its links with this side")
                    peer.generation = max(peer.generation, behind.generation)
                    if is_over or not attempts_left:
                        raise
            assert peer.link is not None
            self._welcome(peer)
            return peer.link
        except PeerLost:
            peer.generation += 1  # the peer may believe that the link is open
            raise
        finally:
            if peer.dialling is asyncio.current_task():
                peer.dialling = None

    # --- called by the backend (links.Sink) ---

    def admit(self, peer: messages.Peer, generation: int) -> None:
        if self._closing:
            raise Invalid(f"{self.name} closed")
        name = peer.name
        known = self._peers.setdefault(name, PeerState(peer))
        if generation < known.generation:
            raise Stale(f"{self.name} has lost its links with {name}", known.generation)
        if generation > known.generation:
            if known.is_linked:
                self.gone(name, "it lost its links with this side, and opens a new one")
                self._peers[name] = known
            known.generation = generation
        elif known.inbound:
            raise Invalid(f"{name} has a link to {self.name} already")
        known.peer = known.peer or peer
        known.inbound = True
        self._welcome(known)

    def wants(self, frame: Frame) -> bool:
        return self._handlers.find(frame) is not None

    def deliver(
        self, source: str, frame: Frame, tensors: Tensors | None, nbytes: int, consumed: Consumed
    ) -> None:
        self.meter.end(source)
        self.counters[f"{frame.purpose}_received"] += nbytes
        self._count(source, "received", nbytes)
        if tensors is None or not (take := self._handlers.find(frame)):
            self.counters["frames_dropped"] += 1
            consumed()
            return
        try:
            if not take(source, frame, tensors, consumed):
                self.counters["frames_dropped"] += 1
        except Exception:
            self.counters["handler_errors"] += 1
            _logger.exception("a %s frame from %s could not be handled", frame.purpose, source)

    def gone(self, peer: str, reason: str, *, goodbye: bool = False) -> None:
        known = self._peers.get(peer)
        if known is None or known.gone:
            return
        established = known.is_linked
        known.lose(PeerLost(peer, f"{peer} is gone: {reason}"))
        self._backend.drop(peer)
        self.meter.drop(peer)
        self._handlers.lose(peer, known.gone)
        self._forget_oldest()
        callbacks = list(self._on_gone)
        if established and not goodbye and not self._closing:
            self.counters["peers_lost"] += 1
            _logger.warning("%s", known.gone)
            callbacks += self._on_lost
        for callback in callbacks:
            try:
                callback(peer)
            except Exception:
                _logger.exception("the loss of %s could not be handled", peer)

    def _welcome(self, peer: PeerState) -> None:
        """A link of the current generation is open: a lost peer is back."""
        if peer.gone:
            self._returns += 1
            peer.gone, peer.is_wanted, peer.returned = "", True, self._returns

    def _why_gone(self, since: int, peer: str) -> str:
        known = self._peers.get(peer)
        if known is None or known.gone or known.returned <= since:
            return known.gone if known else ""
        return f"{peer} was lost, and is back"

    def _forget_oldest(self) -> None:
        if len(self._peers) > MAX_PEERS:
            oldest = next(name for name, peer in self._peers.items() if peer.gone)
            del self._peers[oldest]
            self.links.pop(oldest, None)

    def _count(self, peer: str, way: Literal["sent", "received"], nbytes: int) -> None:
        if peer in self._peers:
            totals = self.links.get(peer)
            if totals is None:
                totals = self.links[peer] = Counter()
            totals[way] += nbytes
            totals[f"frames_{way}"] += 1


def _identity(name: str, key: Key | None) -> "Identity | None":
    if key is None:
        return None
    from sps2.common.transport.identity import Identity  # 50 ms, for most clusters in vain

    return Identity(name, key)
