"""The contract between the plane and its backends: one verb per operation, one file per backend."""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from sps2.common import messages
from sps2.common.errors import Invalid, PeerLost
from sps2.common.transport.credit import Taken
from sps2.common.transport.frame import Frame


class Stale(Invalid):
    """A peer wants to open a link of a generation that is over; `generation` is the present one."""

    def __init__(self, message: str, generation: int) -> None:
        super().__init__(message)
        self.generation = generation


class Behind(PeerLost):
    """The peer refuses a link of a generation that is over; it says which is the present one."""

    def __init__(self, peer: str, message: str, generation: int) -> None:
        super().__init__(peer, message)
        self.generation = generation


class Link(Protocol):
    """An established way to one peer, in one direction: whoever dialled sends."""

    async def send(self, header: bytes, payload: Sequence[memoryview], taken: Taken) -> int:
        """Send one frame after those already queued; the bytes that it took on the wire.

        The frame is queued before the call first waits. Returns when the payload's memory may be
        reused. A cancelled call either leaves the whole frame unsent, or the rest of it follows in
        the background, marked so that it is dropped.

        Args:
            taken: called once the receiver has taken or dropped the frame, or if it stays unsent;
                not after the loss of the link.

        Raises:
            PeerLost: the link broke, or was closed.
        """
        ...


class Sink(Protocol):
    """What a backend tells the plane, always on the plane's own loop."""

    name: str
    token: bytes
    counters: Counter[str]

    def admit(self, peer: messages.Peer, generation: int) -> None:
        """A peer that was introduced wants to open its link to us.

        If its generation is new, all others with it have ended.

        Raises:
            Invalid: it may not: it has such a link already.
            Stale: the link would be of an old generation.
        """
        ...

    def wants(self, frame: Frame) -> bool:
        """Whether the payload that follows `frame` has a taker."""
        ...

    def deliver(
        self,
        source: str,
        frame: Frame,
        tensors: tuple[Tensor, ...] | None,
        nbytes: int,
        taken: Taken,
    ) -> None:
        """A whole frame came, `nbytes` on the wire; `tensors` is None if nothing wants them.

        Args:
            taken: to be called, once, when its reader has it, or when it was dropped.
        """
        ...

    def gone(self, peer: str, reason: str, *, goodbye: bool = False) -> None:
        """A link with `peer` ended; all others with it end too. Later calls change nothing."""
        ...


class Backend(Protocol):
    """One way of moving tensors between processes."""

    async def start(self, host: str, port: int) -> str:
        """Begin to listen; the address for others to dial."""
        ...

    async def dial(self, peer: messages.Peer, generation: int) -> Link:
        """Open the link to `peer`.

        Raises:
            PeerLost: nobody is there, or it is somebody else, or it refuses.
            Behind: it refuses for the generation.
        """
        ...

    def drop(self, peer: str) -> None:
        """End every link with `peer` at once, without a goodbye."""
        ...

    async def close(self) -> None:
        """Say goodbye to all peers, then end everything."""
        ...
