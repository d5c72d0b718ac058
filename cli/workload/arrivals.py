"""When requests arrive: regularly, at random, in bursts, or ever faster."""

import math
import random
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from sps2.common.errors import Invalid

Strategy = Literal["linear", "exponential"]


@dataclass(frozen=True)
class Arrivals:
    """How many requests arrive per second, and how regularly.

    rate: requests per second on average; infinite: all at once.
    cv: the coefficient of variation of the gaps between them: 0 is regular, 1 a Poisson process,
        more comes in bursts. Gaps have a gamma distribution, so `--burstiness` is 1 / cv^2.
    last_rate: the rate of the last request, if the rate changes from the first one to the last.
    strategy: whether it changes by the same amount or by the same factor from request to request.
    """

    rate: float = 1.0
    cv: float = 1.0
    last_rate: float | None = None
    strategy: Strategy = "linear"

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise Invalid(f"a rate of {self.rate:g} requests per second; it must be positive")
        if not 0 <= self.cv < math.inf:
            raise Invalid(f"a coefficient of variation of {self.cv:g}; it must be 0 or more")
        if self.last_rate is not None and not 0 < self.last_rate < math.inf > self.rate:
            raise Invalid("a rate that changes needs a first and a last rate, both positive")

    def times_s(self, count: int, seed: int) -> list[float]:
        """When each of `count` requests arrives.

        Without a change of rate the last one arrives at exactly count / rate seconds, so that
        two seeds give the same load.
        """
        if self.rate == math.inf:
            return [0.0] * count
        draw = random.Random(f"arrivals {seed}")
        times = list(accumulate(self._gap_s(draw, self._rate(i, count)) for i in range(count)))
        if self.last_rate is None and times and times[-1] > 0:
            factor = count / self.rate / times[-1]
            return [time * factor for time in times]
        return times

    def _rate(self, index: int, count: int) -> float:
        if self.last_rate is None:
            return self.rate
        progress = index / max(1, count - 1)
        if self.strategy == "exponential":
            return self.rate * math.pow(self.last_rate / self.rate, progress)
        return self.rate + (self.last_rate - self.rate) * progress

    def _gap_s(self, draw: random.Random, rate: float) -> float:
        if self.cv == 0:
            return 1 / rate
        shape = self.cv**-2
        return draw.gammavariate(shape, 1 / (rate * shape))
