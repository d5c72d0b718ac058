"""How far a rank is with its part of a prompt, reported at intervals while it computes."""

import time
from collections.abc import Callable

from sps2.common.messages import Exchanged

PAUSE_S = 0.25
"""Shortest time between two reports of one rank."""


class Tally:
    """Totals of a shard's prefills since it started, for its heartbeats.

    Written on the data loop; reading is safe on any thread.
    """

    def __init__(self) -> None:
        self._tokens = 0.0
        self._exchange_s = 0.0
        self._hidden_s = 0.0
        self._blocks = 0
        self._kept_blocks = 0

    def computed(self, tokens: float) -> None:
        self._tokens += tokens

    def exchanged(self, exchanged: Exchanged) -> None:
        self._exchange_s += exchanged.exchange_s
        self._hidden_s += exchanged.hidden_s
        self._blocks += exchanged.blocks
        self._kept_blocks += exchanged.kept_blocks

    def counters(self) -> dict[str, float]:
        """Unfinished work counts by layers: half of the layers count as half of the tokens."""
        return {
            "prefill_tokens": self._tokens,
            "exchange_s": self._exchange_s,
            "hidden_s": self._hidden_s,
            "csa_blocks": float(self._blocks),
            "csa_kept_blocks": float(self._kept_blocks),
        }


class Progress:
    """Reports one rank's progress as its layers end.

    Args:
        tokens: how many tokens the rank computes.
        report: called with how many tokens' worth is done, at most once in `PAUSE_S`.
    """

    def __init__(
        self,
        tokens: int,
        layers: int,
        tally: Tally,
        report: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokens = tokens
        self._layers = layers
        self._tally = tally
        self._report = report
        self._clock = clock
        self._done = 0
        self._reported_s = clock()

    def __call__(self, layers: int) -> None:
        """`layers` layers are done."""
        self._tally.computed((layers - self._done) * self._tokens / self._layers)
        self._done = layers
        now_s = self._clock()
        if layers and now_s - self._reported_s >= PAUSE_S:
            self._reported_s = now_s
            self._report(layers * self._tokens // self._layers)
