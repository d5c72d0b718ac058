"""How far a prefill is, from what its ranks tell, and when it will be through."""

from sps2.common.messages import Progress

PAUSE_S = 0.25
"""Between two tellings of one request."""


class Eta:
    """One prefill of a request.

    Args:
        tokens: of the prompt. cached: of these, from the first on, not to be computed.
        since_s: when it began.
    """

    def __init__(self, tokens: int, cached: int, since_s: float) -> None:
        self._tokens = tokens
        self._cached = cached
        self._since_s = since_s
        self._ranks: dict[int, int] = {}
        self._told_s = since_s

    def advance(self, rank: int, tokens: int, now_s: float) -> Progress | None:
        """A rank has computed so many of its tokens; what to tell, unless it was told just now."""
        self._ranks[rank] = tokens
        if now_s - self._told_s < PAUSE_S:
            return None
        self._told_s = now_s
        computed = sum(self._ranks.values())
        missing = self._tokens - self._cached - computed
        eta_ms = 1000 * (now_s - self._since_s) * missing / computed if computed else None
        return Progress(self._cached + computed, self._tokens, self._cached, eta_ms)
