"""Links between shards, whose flows share their bandwidth."""

from collections.abc import Callable
from math import ulp

from sps2.cli.simulator.clock import Clock, Timer

DONE_BYTES = 1e-3


class Flow:
    """Bytes that pass a link.

    Args:
        ended: called when they have.
    """

    __slots__ = ("ended", "left")

    def __init__(self, nbytes: float, ended: Callable[[], None]) -> None:
        self.left = nbytes
        self.ended = ended


class Link:
    """One shard's link; all flows on it have the same share of the bandwidth.

    It counts one direction, the busier one: links are full duplex.
    """

    def __init__(self, clock: Clock, gbit: float) -> None:
        self._clock = clock
        self._rate = gbit * 1.25e8
        self._flows: list[Flow] = []
        self._since_s = 0.0
        self._timer: Timer | None = None

    def send(self, nbytes: float, ended: Callable[[], None]) -> Flow:
        """Begin a flow."""
        flow = Flow(nbytes, ended)
        self._advance()
        self._flows.append(flow)
        self._schedule()
        return flow

    def drop(self, flow: Flow) -> None:
        """End a flow early; its end is not reported."""
        self._advance()
        if flow in self._flows:
            self._flows.remove(flow)
        self._schedule()

    def _advance(self) -> None:
        now_s = self._clock.now_s
        if self._flows:
            sent = (now_s - self._since_s) * self._rate / len(self._flows)
            for flow in self._flows:
                flow.left -= sent
        self._since_s = now_s

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flows:
            least = max(0.0, min(flow.left for flow in self._flows))
            at_s = self._clock.now_s + least * len(self._flows) / self._rate
            self._timer = self._clock.call_at(at_s, self._end)

    def _end(self) -> None:
        self._advance()
        slack_s = 4 * ulp(self._clock.now_s)
        left = min(flow.left for flow in self._flows) + DONE_BYTES + slack_s * self._rate
        over = [flow for flow in self._flows if flow.left <= left]
        self._flows = [flow for flow in self._flows if flow.left > left]
        self._schedule()
        for flow in over:
            flow.ended()
