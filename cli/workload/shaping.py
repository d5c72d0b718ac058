"""Workloads made shorter, smaller or faster."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from msgspec.structs import replace

from sps2.cli.workload.requests import Turn
from sps2.common.errors import Invalid

LEAST_BLOCK = 4
"""Tokens that a block must still have after scaling; fewer could not be told apart as text."""


@dataclass(frozen=True)
class Shape:
    """What to keep of a workload, applied in the order of the fields.

    scale: lengths are multiplied by it; those of blocks too, so that as much is shared as before.
    longest: requests with longer prompts are left out; a session in a closed loop ends with them.
    think_scale: pauses before turns are multiplied by it; 0 leaves none.
    longest_think_s: longer pauses are cut to it.
    span_s: only what comes in so many seconds from the first request on is kept.
    sessions: only the turns of so many sessions are kept, of those that begin first. A request that
        belongs to none counts as one.
    limit: only so many requests, the first ones, are kept.
    """

    scale: float = 1.0
    longest: int | None = None
    think_scale: float = 1.0
    longest_think_s: float | None = None
    span_s: float | None = None
    sessions: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1000:
            raise Invalid(f"lengths times {self.scale:g}; a scale is more than 0, at most 1000")
        if not 0 <= self.think_scale <= 1000:
            raise Invalid(f"pauses times {self.think_scale:g}; a scale is from 0 to 1000")
        for name, value in (
            ("the longest prompt", self.longest),
            ("the longest pause", self.longest_think_s),
            ("the time span", self.span_s),
            ("the number of sessions", self.sessions),
            ("the number of requests", self.limit),
        ):
            if value is not None and not value > 0:
                raise Invalid(f"{name} must be more than 0, not {value:g}")

    def block(self, tokens: int, is_used: bool) -> int:
        """The tokens of a block after scaling. Raises Invalid if too few are left in one."""
        scaled = round(tokens * self.scale)
        if is_used and scaled < min(LEAST_BLOCK, tokens):
            raise Invalid(
                f"lengths times {self.scale:g} leave blocks of {scaled} tokens; this workload "
                f"needs a scale of at least {LEAST_BLOCK / tokens:g}"
            )
        return max(1, scaled)

    def length(self, tokens: int) -> int:
        """A length after scaling."""
        return max(1, round(tokens * self.scale))

    def sized(self, turn: Turn, block_tokens: int) -> Turn | None:
        """A request after scaling, with blocks of `block_tokens`; None if it is too long."""
        prompt, think_s = self.length(turn.prompt_tokens), turn.think_s
        if turn.blocks:  # rounding must not change how many blocks it has
            count = len(turn.blocks)
            prompt = min(max(prompt, (count - 1) * block_tokens + 1), count * block_tokens)
        if self.longest is not None and prompt > self.longest:
            return None
        if think_s is not None:
            longest_s = math.inf if self.longest_think_s is None else self.longest_think_s
            think_s = min(self.think_scale * think_s, longest_s)
        if self.scale == 1 and think_s == turn.think_s:
            return turn
        answer = self.length(turn.answer_tokens)
        return replace(turn, prompt_tokens=prompt, answer_tokens=answer, think_s=think_s)

    def session(self, turns: Sequence[Turn], block_tokens: int = 512) -> list[Turn]:
        """A session after scaling, up to its first turn that is too long."""
        block = self.block(block_tokens, True)
        sized = (self.sized(turn, block) for turn in turns)
        return [turn for turn in takewhile(lambda turn: turn is not None, sized) if turn]

    def cut(self, turns: Sequence[Turn]) -> list[Turn]:
        """The first of the requests, in the order of their times, which then start at 0."""
        ordered = sorted(turns, key=lambda turn: turn.at_s)
        start = ordered[0].at_s if ordered else 0.0
        kept = []
        begun: set[object] = set()
        for turn in ordered:
            at_s = turn.at_s - start
            if self.span_s is not None and at_s > self.span_s:
                break
            if turn.session not in begun:
                if len(begun) == self.sessions:
                    continue
                begun.add(turn.session or object())
            kept.append(turn if not start else replace(turn, at_s=at_s))
            if len(kept) == self.limit:
                break
        return kept
