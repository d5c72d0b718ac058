"""When the requests of a workload are sent."""

from collections.abc import Callable, Iterator

from sps2.cli.simulator.clock import Clock
from sps2.cli.workload.requests import Turn, Workload


class Arrivals:
    """Sends each turn at its time, or some time after the answer before it in its session.

    Args:
        send: called with each turn when it is sent.
    """

    def __init__(self, clock: Clock, workload: Workload, send: Callable[[Turn], None]) -> None:
        self._clock = clock
        self._send = send
        self._later: dict[str, list[Turn]] = {}
        """Turns that wait for an answer, by session; the next one is the last."""
        self._next(self._first_turns(workload))

    def answered(self, turn: Turn) -> None:
        """A turn has ended: the next of its session follows after a while."""
        if later := self._later.get(turn.session):
            following = later.pop()
            at_s = self._clock.now_s + (following.think_s or 0.0)
            self._clock.call_at(at_s, lambda: self._send(following))

    def failed(self, turn: Turn) -> int:
        """A turn has failed: the rest of its session is not sent. Returns how many those are."""
        return len(self._later.pop(turn.session, []))

    def _first_turns(self, workload: Workload) -> Iterator[Turn]:
        """The turns that do not wait for others."""
        known, first = set[str](), list[Turn]()
        for turn in workload.turns:
            if turn.session in known and turn.think_s is not None:
                self._later.setdefault(turn.session, []).append(turn)
                continue
            if turn.session:
                known.add(turn.session)
            first.append(turn)
        for turns in self._later.values():
            turns.reverse()
        return iter(first)

    def _next(self, turns: Iterator[Turn]) -> None:
        turn = next(turns, None)
        if turn is None:
            return

        def send() -> None:
            self._next(turns)
            self._send(turn)

        self._clock.call_at(turn.at_s, send)
