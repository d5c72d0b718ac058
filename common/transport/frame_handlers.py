"""Finds the inbox or handler of an incoming frame."""

from collections.abc import Callable, Container, Iterable
from functools import partial

from sps2.common.transport.credit import Consumed
from sps2.common.transport.frame import Frame, Purpose
from sps2.common.transport.inbox import Inbox, Tensors

Deliver = Callable[[str, Frame, Tensors], None]
"""Handles a frame on the loop: its sender, header and tensors."""
Take = Callable[[str, Frame, Tensors, Consumed], bool]
"""Accepts a frame, and calls its `Consumed`; returns False if the frame was dropped after all."""
Request = tuple[str, int]
"""(request, epoch)"""


class FrameHandlers:
    """The open inboxes and the handlers of one plane."""

    def __init__(self) -> None:
        self.inboxes: dict[Request, Inbox] = {}
        self.handlers: dict[Purpose, tuple[Deliver, Container[Request] | None]] = {}
        """Each with the requests whose frames it accepts; None: all."""

    def find(self, frame: Frame) -> Take | None:
        """What accepts the frame; None if nothing does."""
        requests: Iterable[Request] = zip(frame.requests, frame.epochs, strict=True)
        if found := self.handlers.get(frame.purpose):
            handler, accepted = found
            if accepted is None or any(each in accepted for each in requests):
                return partial(_handle, handler)
            return None
        for key in requests:
            if inbox := self.inboxes.get(key):
                return inbox.put
        return None

    def close(self, key: Request) -> None:
        """Remove an inbox that was closed."""
        del self.inboxes[key]

    def lose(self, peer: str, why: str) -> None:
        """Notify all inboxes that a peer is gone."""
        for inbox in self.inboxes.values():
            inbox.lose(peer, why)


def _handle(
    handler: Deliver, source: str, frame: Frame, tensors: Tensors, consumed: Consumed
) -> bool:
    try:
        handler(source, frame, tensors)
    finally:
        consumed()
    return True
