"""What a plane knows of one life of another process: whether it is there, and which links count."""

import asyncio
from dataclasses import dataclass, field

from sps2.common import messages
from sps2.common.errors import PeerLost
from sps2.common.transport.credit import Credit
from sps2.common.transport.links import Link


@dataclass(slots=True)
class PeerState:
    """A peer.

    A loss is the end of all links with it, both ways, and of what was under way. Each begins a new
    `generation` of links. Handshakes make both sides agree on it, so that neither goes on with a
    link that the other has lost.
    """

    peer: messages.Peer | None = None
    """How it is reached, once that is known."""
    dialling: asyncio.Task[Link] | None = None
    link: Link | None = None
    inbound: bool = False
    credit: Credit = field(default_factory=Credit)
    gone: str = ""
    """Why nothing goes to or comes from it; empty again when a link of the new generation opens."""
    is_wanted: bool = True
    """Whether it may be dialled: after a loss, when it is introduced anew."""
    generation: int = 0
    returned: int = 0
    """When it was back after its last loss, as a count of returns of all peers."""

    @property
    def is_linked(self) -> bool:
        return self.inbound or self.link is not None

    def lose(self, lost: PeerLost) -> None:
        """Forget its links, and fail who waits for credit."""
        self.gone, self.is_wanted = lost.message, False
        self.credit.end(lost)
        self.credit = Credit()
        self.generation += 1
        self.link, self.inbound = None, False
        dialling, self.dialling = self.dialling, None
        if dialling is not None and dialling is not asyncio.current_task():
            dialling.cancel()
