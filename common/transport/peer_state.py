"""A plane's state of a peer process: whether it is there, and which links are valid."""

import asyncio
from dataclasses import dataclass, field

from sps2.common import messages
from sps2.common.errors import PeerLost
from sps2.common.transport.credit import Credit
from sps2.common.transport.interfaces import Link


@dataclass(slots=True)
class PeerState:
    """The state of a peer.

    A loss ends all links with it, both ways, and all that was under way, and begins a new
    `generation` of links. Handshakes make both sides agree on the generation, so that neither goes
    on with a link that the other has lost.
    """

    peer: messages.Peer | None = None
    """How to reach it, once that is known."""
    dialling: asyncio.Task[Link] | None = None
    link: Link | None = None
    inbound: bool = False
    credit: Credit = field(default_factory=Credit)
    gone: str = ""
    """Why it is lost; empty again when a link of the new generation opens."""
    is_wanted: bool = True
    """Whether it may be dialled; after a loss only once it is introduced again."""
    generation: int = 0
    returned: int = 0
    """When it came back after its last loss, as a count of returns of all peers."""

    @property
    def is_linked(self) -> bool:
        return self.inbound or self.link is not None

    def lose(self, lost: PeerLost) -> None:
        """Drop its links, and fail senders that wait for credit."""
        self.gone, self.is_wanted = lost.message, False
        self.credit.end(lost)
        self.credit = Credit()
        self.generation += 1
        self.link, self.inbound = None, False
        dialling, self.dialling = self.dialling, None
        if dialling is not None and dialling is not asyncio.current_task():
            dialling.cancel()
