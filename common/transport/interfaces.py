"""The interfaces between the plane and its backends."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from sps2.common import messages
from sps2.common.errors import Invalid, PeerLost
from sps2.common.transport.credit import Consumed
from sps2.common.transport.frame import Frame
from sps2.common.transport.meter import Meter

if TYPE_CHECKING:
    from sps2.common.transport.identity import Identity


class Stale(Invalid):
    """A peer wants to open a link of a generation that is over; `generation` is the current one."""

    def __init__(self, message: str, generation: int) -> None:
        super().__init__(message)
        self.generation = generation


class Behind(PeerLost):
    """The peer refuses a link of a generation that is over; `generation` is the current one."""

    def __init__(self, peer: str, message: str, generation: int) -> None:
        super().__init__(peer, message)
        self.generation = generation


class Link(Protocol):
    """An established link to a peer, in one direction: from the dialler to the acceptor."""

    async def send(self, header: bytes, payload: Sequence[memoryview], consumed: Consumed) -> int:
        """Send one frame after those already queued, and return its bytes on the wire.

        The frame is queued before the call first waits. Returns when the payload's memory may be
        reused. A cancelled call either leaves the whole frame unsent, or the rest of it follows in
        the background, marked so that it is dropped.

        Args:
            consumed: called once the frame was read or dropped at the receiver, or if it stays
                unsent; not after the loss of the link.

        Raises:
            PeerLost: the link broke, or was closed.
        """
        ...


class Sink(Protocol):
    """The plane's callbacks for a backend, always called on the plane's loop."""

    name: str
    token: bytes
    identity: "Identity | None"
    """This side's certificate, if links are to be encrypted."""
    counters: Counter[str]
    meter: Meter
    """Backends with links of limited rate call its `begin` for each frame that comes."""

    def admit(self, peer: messages.Peer, generation: int) -> None:
        """A peer that was introduced wants to open its link to this plane.

        If its generation is new, all other links with it have ended.

        Raises:
            Invalid: the peer already has a link of this generation, or the plane closes.
            Stale: the link would be of an old generation.
        """
        ...

    def wants(self, frame: Frame) -> bool:
        """Whether an inbox or handler accepts the payload that follows `frame`."""
        ...

    def deliver(
        self,
        source: str,
        frame: Frame,
        tensors: tuple[Tensor, ...] | None,
        nbytes: int,
        consumed: Consumed,
    ) -> None:
        """A whole frame came, `nbytes` on the wire; `tensors` is None if it is to be dropped.

        Args:
            consumed: to be called once, when its reader has the frame, or when it was dropped.
        """
        ...

    def gone(self, peer: str, reason: str, *, goodbye: bool = False) -> None:
        """A link with `peer` ended; all others with it end too. Repeated calls have no effect."""
        ...


class Backend(Protocol):
    """One way of moving tensors between processes."""

    async def start(self, host: str, port: int) -> str:
        """Begin to listen, and return the address for others to dial."""
        ...

    async def dial(self, peer: messages.Peer, generation: int) -> Link:
        """Open the link to `peer`.

        Raises:
            PeerLost: nobody answers, another process answers, or the peer refuses.
            Behind: the peer refuses since the generation is over.
        """
        ...

    def drop(self, peer: str) -> None:
        """End every link with `peer` at once, without a goodbye."""
        ...

    async def close(self) -> None:
        """Say goodbye to all peers, then end everything."""
        ...
