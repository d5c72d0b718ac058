"""What one API key may use a minute: buckets that fill steadily, and what of them is spent."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from msgspec.structs import replace

from sps2.common.errors import Invalid, Refused
from sps2.common.words import counted
from sps2.services.gateway.generate import Job, Record

MINUTE_S = 60.0
SHARES = 8
"""An answer of no stated length holds one of so many parts of a minute's tokens while it runs."""


class Bucket:
    """So many units a minute, at most that many at once; 0 is no limit.

    Args:
        noun: of one unit, which takes an s in the plural.
    """

    def __init__(self, noun: str, clock: Callable[[], float]) -> None:
        self.per_minute = 0
        self._noun = noun
        self._clock = clock
        self._left = 0.0
        self._at_s = clock()

    def limit(self, per_minute: int) -> None:
        """From now on; what was used stays used."""
        if per_minute != self.per_minute:
            used = self.per_minute - self.left()
            self.per_minute, self._left = per_minute, per_minute - used

    def left(self) -> float:
        """Units that can be taken now; less than none after more was used than taken."""
        now_s = self._clock()
        gained = (now_s - self._at_s) * self.per_minute / MINUTE_S
        self._left, self._at_s = min(self.per_minute, self._left + gained), now_s
        return self._left

    def wait_s(self, units: float) -> float:
        """Until so many can be taken."""
        if not self.per_minute:
            return 0.0
        return max(0.0, (units - self.left()) * MINUTE_S / self.per_minute)

    def take(self, units: int) -> None:
        """Take units.

        Raises:
            Invalid: there are never as many.
            Refused: there are not as many now; says when there will be.
        """
        if not self.per_minute:
            return
        if units > self.per_minute:
            raise Invalid(
                f"this request may take {counted(units, self._noun)}; the API key is for "
                f"{self.per_minute} a minute",
                None,
                "rate_limit_exceeded",
            )
        if wait_s := self.wait_s(units):
            left, seconds = max(0, math.floor(self._left)), math.ceil(wait_s)
            if self.per_minute == 1:
                told = (
                    f"the API key's only {self._noun} of this minute is used up: try again in "
                    f"{seconds} s"
                )
            else:
                told = (
                    f"the API key's {self.per_minute} {self._noun}s a minute are used up: "
                    f"{units} wanted, {left} left; try again in {seconds} s"
                )
            raise Refused(told, wait_s)
        self._left -= units

    def give(self, units: int) -> None:
        """Give back what was not used; less than none takes more."""
        if self.per_minute:
            self._left = min(self.per_minute, self.left() + units)


class Account:
    """What one API key has used.

    Args:
        name: of the key.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.name = name
        self._requests = Bucket("request", clock)
        self._tokens = Bucket("token", clock)

    def limit(self, requests_per_minute: int, tokens_per_minute: int) -> None:
        """What it may use; 0 is no limit."""
        self._requests.limit(requests_per_minute)
        self._tokens.limit(tokens_per_minute)

    def ask(self) -> None:
        """One request more. Refused if there were too many."""
        self._requests.take(1)

    def bounded(self, prompts: Sequence[Sequence[int]], jobs: Sequence[Job]) -> tuple[Job, ...]:
        """The jobs, with answers of no stated length cut to what a minute's tokens allow."""
        if not self._tokens.per_minute:
            return tuple(jobs)
        most = (self._tokens.per_minute - sum(map(len, prompts))) // len(jobs)
        return tuple(_cut(job, most) if job.open_ended else job for job in jobs)

    @contextmanager
    def spending(
        self, prompts: Sequence[Sequence[int]], jobs: Sequence[Job], records: Sequence[Record]
    ) -> Iterator[None]:
        """Hold the tokens that an answer may take while the block runs; then what it took stays.

        Of an answer without `max_tokens` that is not known: a share of the minute is held for it.

        Raises:
            Invalid, Refused: as `Bucket.take`.
        """
        prompt = sum(map(len, prompts))
        share = max(1, self._tokens.per_minute // SHARES // len(jobs))
        limits = [_cut(job, share) if job.open_ended else job for job in jobs]
        held = prompt + sum(job.sampling.max_tokens for job in limits)
        self._tokens.take(held)
        try:
            yield
        finally:
            begun = any(record.placed for record in records)
            used = prompt * begun + sum(record.tokens for record in records)
            self._tokens.give(held - used)

    def headers(self) -> dict[str, str]:
        """What OpenAI's API tells of limits."""
        told: dict[str, str] = {}
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket.per_minute:
                left = max(0, math.floor(bucket.left()))
                told[f"x-ratelimit-limit-{name}"] = str(bucket.per_minute)
                told[f"x-ratelimit-remaining-{name}"] = str(left)
                reset_s = math.ceil(bucket.wait_s(bucket.per_minute))
                told[f"x-ratelimit-reset-{name}"] = f"{reset_s}s"
        return told


def _cut(job: Job, most: int) -> Job:
    sampling = job.sampling
    tokens = min(sampling.max_tokens, max(1, sampling.min_tokens, most))
    return replace(job, sampling=replace(sampling, max_tokens=tokens))
