"""Who takes an incoming frame."""

from collections.abc import Callable, Container, Iterable
from functools import partial

from sps2.common.transport.credit import Taken
from sps2.common.transport.frame import Frame, Purpose
from sps2.common.transport.inbox import Inbox, Tensors

Deliver = Callable[[str, Frame, Tensors], None]
"""Takes a frame on the loop: who sent it, its header, its tensors."""
Take = Callable[[str, Frame, Tensors, Taken], bool]
"""Takes a frame in, says when it is taken; False if it was dropped after all."""
Request = tuple[str, int]
"""(request, epoch)"""


class FrameHandlers:
    """Open inboxes and handlers of one plane."""

    def __init__(self) -> None:
        self.inboxes: dict[Request, Inbox] = {}
        self.handlers: dict[Purpose, tuple[Deliver, Container[Request] | None]] = {}
        """Each with the requests whose frames it takes; None: all."""

    def find(self, frame: Frame) -> Take | None:
        """What takes the frame in, or None."""
        requests: Iterable[Request] = zip(frame.requests, frame.epochs, strict=True)
        if found := self.handlers.get(frame.purpose):
            handler, taken = found
            if taken is None or any(each in taken for each in requests):
                return partial(_handle, handler)
            return None
        for key in requests:
            if inbox := self.inboxes.get(key):
                return inbox.put
        return None

    def close(self, key: Request) -> None:
        """An inbox was closed."""
        del self.inboxes[key]

    def lose(self, peer: str, why: str) -> None:
        """Tell all inboxes that a peer is gone."""
        for inbox in self.inboxes.values():
            inbox.lose(peer, why)


def _handle(handler: Deliver, source: str, frame: Frame, tensors: Tensors, taken: Taken) -> bool:
    try:
        handler(source, frame, tensors)
    finally:
        taken()
    return True
