"""Predicted seconds, corrected by what requests took so far."""

import math
from collections import deque
from collections.abc import Iterable

SAMPLES = 256
"""How many recent prefills count."""
FADING = 0.98
"""Weight of a prefill relative to the one after it."""
WIDTH = 0.3
"""A prefill whose prediction differs by this much, as a natural logarithm, has a quarter of the
weight."""
UNMEASURED = 0.02
"""Weight of the formula itself, where that of a recent prefill is 1."""
CALLERS = 1024
"""Of how many callers the recent answers are remembered."""
KNOWN = 1024
"""How many predictions are kept."""
PACE = 0.2
"""Weight of the latest answer in the mean time between tokens, and in the mean length."""


class Costs:
    """How long requests take, learned while they run.

    The formulas (`Schemes`) predict arithmetic and transfers at the configured rates. What a
    prefill took, from its launch to its first token, is that times a factor, which depends on the
    size of the prompt: for short ones the steps of a launch and the hops of every layer count more.
    So it is the mean of the factors of recent prefills, weighted by how near their predictions are
    (Nadaraya-Watson regression of the logarithm).

    Args:
        factors, tbt_s, answers: what has been learned before.
    """

    def __init__(
        self,
        factors: Iterable[tuple[float, float]] = (),
        tbt_s: float | None = None,
        answers: dict[str, float] | None = None,
    ) -> None:
        self._factors = deque(factors, SAMPLES)
        self._known: dict[float, float] = {}
        """Answers of `first_token_s` since the last prefill was learned."""
        self.answers = answers or {}
        """Recent mean length of answers, in tokens, by caller; whoever had one last is the last."""
        self.tbt_s = tbt_s
        """Recent mean time between tokens; None before the first answer."""

    @property
    def factors(self) -> tuple[tuple[float, float], ...]:
        """Logarithms of predicted seconds and of the factor, of recent prefills, oldest first."""
        return tuple(self._factors)

    def learn_prefill(self, predicted_s: float, took_s: float) -> None:
        """A prefill that shared its shards with no other one took this long."""
        if predicted_s > 0 and took_s > 0:
            self._factors.append((math.log(predicted_s), math.log(took_s / predicted_s)))
            self._known.clear()

    def learn_decode(self, tokens: int, took_s: float) -> None:
        """The tokens after the first took this long."""
        pace_s = took_s / tokens
        self.tbt_s = pace_s if self.tbt_s is None else self.tbt_s + PACE * (pace_s - self.tbt_s)

    def learn_answer(self, caller: str, tokens: int) -> None:
        """An answer for this caller had this many tokens."""
        before = self.answers.pop(caller, float(tokens))
        self.answers[caller] = before + PACE * (tokens - before)
        if len(self.answers) > CALLERS:
            del self.answers[next(iter(self.answers))]

    def answer_tokens(self, caller: str, most: int) -> float:
        """The length that an answer to this caller is expected to have, at most `most`."""
        return min(most, self.answers.get(caller, most))

    def first_token_s(self, predicted_s: float) -> float:
        """Seconds from the launch to the first token of a prefill on shards of its own.

        Args:
            predicted_s: by the formulas.
        """
        if (known := self._known.get(predicted_s)) is not None:
            return known
        if len(self._known) >= KNOWN:
            self._known.clear()
        where = math.log(predicted_s)
        total, mean, age = UNMEASURED, 0.0, 1.0
        for at, factor in reversed(self._factors):
            weight = age / (1 + ((at - where) / WIDTH) ** 2) ** 2
            total += weight
            mean += weight * factor
            age *= FADING
        self._known[predicted_s] = predicted_s * math.exp(mean / total)
        return self._known[predicted_s]
