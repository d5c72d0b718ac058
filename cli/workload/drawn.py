"""Lengths and sessions drawn from distributions, whose quantiles come with the package."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Protocol

import msgspec

from sps2.cli.workload.agents import grown
from sps2.cli.workload.requests import Turn
from sps2.common.errors import Invalid

LONG = (100_000, 500_000)
"""Lengths of the long prompts in the mixed set of PecSched's evaluation and its like."""
LONG_SHARE = 0.05
TOKEN_S = 0.02
"""Nominal time between two tokens; only the order of turns depends on it."""


class Quantiles(msgspec.Struct, frozen=True):
    """Lengths of prompts and answers: 0 % to 100 %, each drawn by itself."""

    source: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def draw(self, random: random.Random) -> tuple[int, int]:
        return _between(self.prompt, random.random()), _between(self.answer, random.random())


class Sessions(msgspec.Struct, frozen=True):
    """Conversations of agents: quantiles of turns, of the first prompt, of what each turn adds to
    the prompt before it, of answers and pauses. A session ends before it is longer than `longest`.
    """

    source: str
    longest: int
    turns: tuple[int, ...]
    first: tuple[int, ...]
    growth: tuple[int, ...]
    answer: tuple[int, ...]
    think_s: tuple[float, ...]

    def draw(self, random: random.Random) -> Iterator[list[Turn]]:
        """Sessions without end; times are seconds since the start of each."""
        ids = itertools.count()
        for number in itertools.count():
            turns: list[Turn] = []
            tokens, at_s = _between(self.first, random.random()), 0.0
            for index in range(_between(self.turns, random.random())):
                before = turns[-1] if turns else None
                think_s = None
                if before is not None:
                    think_s = round(_at(self.think_s, random.random()), 1)
                    at_s += think_s + before.answer_tokens * TOKEN_S
                    tokens += _between(self.growth, random.random())
                if index and tokens > self.longest:
                    break
                shared = before.prompt_tokens if before else 0
                blocks = grown(before.blocks if before else (), tokens, shared, ids)
                answer = _between(self.answer, random.random())
                turns.append(Turn(at_s, tokens, answer, blocks, f"agent-{number}", think_s))
            yield turns


class Lengths(Protocol):
    """Draws the lengths of a prompt and its answer."""

    def draw(self, random: random.Random) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Uniform:
    """Lengths between two numbers, both of which are possible; equal ones fix the length."""

    prompt: tuple[int, int]
    answer: tuple[int, int]

    def __post_init__(self) -> None:
        for low, high in (self.prompt, self.answer):
            if not 1 <= low <= high:
                raise Invalid(f"lengths from {low} to {high}; both must be positive, and rise")

    def draw(self, random: random.Random) -> tuple[int, int]:
        return random.randint(*self.prompt), random.randint(*self.answer)


@dataclass(frozen=True)
class WithTail:
    """The longest prompts of a distribution, replaced by long ones of any length in a range."""

    body: Quantiles
    long: tuple[int, int] = LONG
    share: float = LONG_SHARE

    def __post_init__(self) -> None:
        if not 1 <= self.long[0] <= self.long[1]:
            raise Invalid(f"long prompts of {self.long[0]} to {self.long[1]} tokens")
        if not 0 < self.share < 1:
            raise Invalid(f"a share of {self.share:g} long prompts; it is between 0 and 1")

    def draw(self, random: random.Random) -> tuple[int, int]:
        place = random.random()
        answer = _between(self.body.answer, random.random())
        if place > 1 - self.share:
            return random.randint(*self.long), answer
        return _between(self.body.prompt, place), answer


class Shipped(msgspec.Struct, frozen=True):
    """What quantiles.json has."""

    about: str
    lengths: dict[str, Quantiles]
    agents: Sessions


@cache
def shipped() -> Shipped:
    """The distributions that come with the package."""
    text = files("sps2.cli.workload").joinpath("quantiles.json").read_bytes()
    return msgspec.json.decode(text, type=Shipped)


def parsed(source: str) -> Lengths | None:
    """Lengths such as `fixed:4096,128` or `range:100-2000,16-64`; None if it is nothing like it."""
    kind, _, rest = source.partition(":")
    if kind not in ("fixed", "range"):
        return None
    try:
        prompt, answer = (
            (int(low), int(high or low))
            for low, _, high in (part.partition("-") for part in rest.split(","))
        )
    except ValueError:
        raise Invalid(
            f"{source!r} gives no lengths of prompt and answer, such as fixed:4096,128 or "
            "range:100-2000,16-64"
        ) from None
    return Uniform(prompt, answer)


def _between(quantiles: Sequence[int], place: float) -> int:
    return max(1, round(_at(quantiles, place)))


def _at(quantiles: Sequence[float], place: float) -> float:
    """The value at a place from 0 to 1; straight lines join the quantiles."""
    index, rest = divmod(place * (len(quantiles) - 1), 1)
    low = quantiles[int(index)]
    return low + rest * (quantiles[min(int(index) + 1, len(quantiles) - 1)] - low)
