"""How long large frames take to arrive: the rate of the ways from peers to this process."""

import time
from collections.abc import Callable

LEAST_BYTES = 64 << 10
"""Smaller frames come in one read, and show nothing of a link."""


class Meter:
    """Counts bytes of large frames, and the time from the first byte of each to its last, by peer.

    That time has nothing of the sender's computing: a frame leaves when it is complete. A time in
    which frames of several peers come at once counts in equal parts for each of them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._coming: dict[str, int] = {}
        """Bytes of the frame that comes from each peer."""
        self._since_s = 0.0
        self._totals: dict[str, tuple[int, float]] = {}

    def begin(self, peer: str, nbytes: int) -> None:
        """The header of a peer's frame has come, which has so many bytes."""
        if nbytes >= LEAST_BYTES:
            self._advance()
            self._coming[peer] = nbytes

    def end(self, peer: str) -> None:
        """All of the frame has come."""
        if peer in self._coming:
            self._advance()
            nbytes, seconds = self._totals.get(peer, (0, 0.0))
            self._totals[peer] = nbytes + self._coming.pop(peer), seconds

    def drop(self, peer: str) -> None:
        """The rest of the frame never comes, and its time does not count."""
        if peer in self._coming:
            self._advance()
            del self._coming[peer]
        self._totals.pop(peer, None)

    def totals(self) -> dict[str, tuple[int, float]]:
        """Bytes and seconds so far, by peer."""
        return dict(self._totals)

    def since(self, before: dict[str, tuple[int, float]]) -> dict[str, tuple[int, float]]:
        """What has come since `totals`, by peer; a peer that was lost since counts from then."""
        found = {}
        for peer, (nbytes, seconds) in self._totals.items():
            earlier, earlier_s = before.get(peer, (0, 0.0))
            if nbytes > earlier:
                found[peer] = nbytes - earlier, max(0.0, seconds - earlier_s)
        return found

    def _advance(self) -> None:
        now_s = self._clock()
        if self._coming:
            share_s = (now_s - self._since_s) / len(self._coming)
            for peer in self._coming:
                nbytes, seconds = self._totals.get(peer, (0, 0.0))
                self._totals[peer] = nbytes, seconds + share_s
        self._since_s = now_s
