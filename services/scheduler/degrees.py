"""How many shards are worth using for one prompt."""

from functools import lru_cache
from math import inf

from sps2.common.errors import Invalid
from sps2.common.messages import PrefillOptions
from sps2.services.scheduler.schemes import Schemes

EFFICIENT = 0.8
"""Share of the shards' time that must go into a prompt's arithmetic where they have other work."""
SPARE = 0.5
"""The same for shards that are idle: less would load the links of all for little."""
LEAST_S = 0.06
"""Arithmetic that each shard must get where others have work: below that, a pass of a GPU does not
fill it, and ranks wait for each other more than they compute."""
STEPS = 16
"""Lengths of prompts count as equal within a factor of 2 to the power of one over this."""
KEPT = 4096
"""How many recent degrees are kept."""


class Degrees:
    """Chooses SP degrees by prediction.

    With an idle cluster a prompt gets the degree at which its first token comes soonest, unless
    that would waste most of the shards' time. While other prompts are computed it gets only as many
    shards as it uses well, since what it wastes delays them: where the speedup is less than linear,
    the least mean response time needs the fewer shards for each the more wait (heSRPT, Berg et al.,
    arXiv 2011.09676).
    """

    def __init__(self, schemes: Schemes) -> None:
        self._schemes = schemes
        self._chosen = lru_cache(KEPT)(self._choose)

    def best(
        self, tokens: int, most: int, idle: int, options: PrefillOptions, gathers: bool = False
    ) -> int:
        """The degree for a prompt.

        Args:
            tokens: that are not cached.
            most: shards that it may use.
            idle: of these, those that prefill nothing.
            gathers: whether one of them keeps all KV, so that the others send it theirs.
        """
        if most < 2 or tokens < 2 or options.method is not None:
            return most
        octave = tokens.bit_length() - 1
        unit = max(1, (1 << octave) // STEPS)
        return self._chosen(tokens // unit * unit, most, min(most, idle), options, gathers)

    def _choose(
        self, tokens: int, most: int, idle: int, options: PrefillOptions, gathers: bool
    ) -> int:
        alone_s = self._schemes.alone_s(tokens)
        seconds = {1: alone_s}

        def within(limit: int, efficiency: float) -> list[int]:
            """Degrees up to a limit, halves of each other, that use their shards so well."""
            found, degree = [1], limit
            while degree > 1:
                if degree not in seconds:
                    seconds[degree] = self._seconds(tokens, degree, options, gathers)
                if alone_s >= efficiency * degree * seconds[degree]:
                    found.append(degree)
                degree //= 2
            return found

        filled = [each for each in within(most, EFFICIENT) if alone_s >= each * LEAST_S]
        soonest = min(within(idle, SPARE), key=lambda degree: (seconds[degree], -degree))
        return max([soonest, *filled])

    def _seconds(self, tokens: int, degree: int, options: PrefillOptions, gathers: bool) -> float:
        schemes = self._schemes
        try:
            partition = schemes.choose(tokens, degree, options)
        except Invalid:  # a configured method that needs another degree
            return inf
        gathered_s = schemes.gathered_s(partition) if gathers else 0.0
        return max(partition.predicted_s, gathered_s)
