"""How far a rank is with its part of a prompt, told now and then while it computes."""

import time
from collections.abc import Callable

from sps2.common.messages import Exchanged

PAUSE_S = 0.25
"""Between two tellings of one rank."""


class Tally:
    """What a shard's prefills come to since it started, for its heartbeats.

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
        """Work that is under way counts by layers: half of them make half a token of each."""
        return {
            "prefill_tokens": self._tokens,
            "exchange_s": self._exchange_s,
            "hidden_s": self._hidden_s,
            "csa_blocks": float(self._blocks),
            "csa_kept_blocks": float(self._kept_blocks),
        }


class Progress:
    """One rank's layers as they end.

    Args:
        tokens: of the rank.
        tell: given how many tokens' worth is done; not called for what takes less than `PAUSE_S`.
    """

    def __init__(
        self,
        tokens: int,
        layers: int,
        tally: Tally,
        tell: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokens = tokens
        self._layers = layers
        self._tally = tally
        self._tell = tell
        self._clock = clock
        self._done = 0
        self._told_s = clock()

    def __call__(self, layers: int) -> None:
        """So many layers are done."""
        self._tally.computed((layers - self._done) * self._tokens / self._layers)
        self._done = layers
        now_s = self._clock()
        if layers and now_s - self._told_s >= PAUSE_S:
            self._told_s = now_s
            self._tell(layers * self._tokens // self._layers)
