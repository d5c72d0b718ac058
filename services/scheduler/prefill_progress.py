"""How far a prefill is, from the reports of its ranks, and when it will be done."""

from sps2.common.messages import Progress

PAUSE_S = 0.25
"""Shortest time between two reports of one request."""


class Eta:
    """The progress of one prefill.

    Args:
        tokens: tokens of the prompt. cached: how many of them, from the first on, are cached.
        since_s: when the prefill began.
    """

    def __init__(self, tokens: int, cached: int, since_s: float) -> None:
        self._tokens = tokens
        self._cached = cached
        self._since_s = since_s
        self._before = 0
        """Tokens computed in earlier chunks."""
        self._ranks: dict[int, int] = {}
        self._reported_s = since_s

    def finish(self, stop: int, now_s: float) -> Progress | None:
        """Record that all before a position is computed; reports as `advance`."""
        self._before, self._ranks = stop - self._cached, {}
        return self._report(now_s)

    def advance(self, rank: int, tokens: int, now_s: float) -> Progress | None:
        """Record how many tokens of a chunk a rank has computed; reports once in `PAUSE_S`."""
        self._ranks[rank] = tokens
        return self._report(now_s)

    def _report(self, now_s: float) -> Progress | None:
        if now_s - self._reported_s < PAUSE_S:
            return None
        self._reported_s = now_s
        computed = self._before + sum(self._ranks.values())
        missing = self._tokens - self._cached - computed
        eta_ms = 1000 * (now_s - self._since_s) * missing / computed if computed else None
        return Progress(self._cached + computed, self._tokens, self._cached, eta_ms)
