"""Who takes an incoming frame."""

from collections.abc import Callable

from sps2.common.transport.frame import Frame, Purpose
from sps2.common.transport.inbox import Deliver, Inbox, Tensors


class Takers:
    """Open inboxes and handlers of one plane."""

    def __init__(self) -> None:
        self.inboxes: dict[tuple[str, int], Inbox] = {}
        self.handlers: dict[Purpose, Deliver] = {}

    def find(self, frame: Frame) -> Callable[[str, Frame, Tensors], bool | None] | None:
        """What takes the frame in (False if it did not after all), or None."""
        if handler := self.handlers.get(frame.purpose):
            return handler
        for key in zip(frame.requests, frame.epochs, strict=True):
            if inbox := self.inboxes.get(key):
                return inbox.put
        return None

    def close(self, key: tuple[str, int]) -> None:
        """An inbox was closed."""
        del self.inboxes[key]

    def lose(self, peer: str, why: str) -> None:
        """Tell all inboxes that a peer is gone."""
        for inbox in self.inboxes.values():
            inbox.lose(peer, why)
