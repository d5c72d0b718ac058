"""Quotas of API keys per minute: token buckets for requests and for tokens."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from msgspec.structs import replace

from sps2.common.errors import Invalid, Refused
from sps2.common.words import counted
from sps2.services.gateway.generate import Job, Record

MINUTE_S = 60.0
SHARES = 8
"""An answer without `max_tokens` reserves 1/SHARES of the minute's tokens while it runs."""


class Bucket:
    """A token bucket: `per_minute` units a minute, at most that many at once; 0 is no limit.

    Args:
        noun: the name of one unit; the plural is formed with an s.
    """

    def __init__(self, noun: str, clock: Callable[[], float]) -> None:
        self.per_minute = 0
        self._noun = noun
        self._clock = clock
        self._left = 0.0
        self._at_s = clock()

    def limit(self, per_minute: int) -> None:
        """Set the limit from now on; what was used stays used."""
        if per_minute != self.per_minute:
            used = self.per_minute - self.left()
            self.per_minute, self._left = per_minute, per_minute - used

    def left(self) -> float:
        """Units that can be used now; negative after a request used more than it reserved."""
        now_s = self._clock()
        gained = (now_s - self._at_s) * self.per_minute / MINUTE_S
        self._left, self._at_s = min(self.per_minute, self._left + gained), now_s
        return self._left

    def wait_s(self, units: float) -> float:
        """Seconds until `units` units can be used."""
        if not self.per_minute:
            return 0.0
        return max(0.0, (units - self.left()) * MINUTE_S / self.per_minute)

    def take(self, units: int) -> None:
        """Use up units.

        Raises:
            Invalid: the limit is lower than `units`.
            Refused: not enough units are left now; says when there will be.
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
                message = (
                    f"the API key's only {self._noun} of this minute is used up: try again in "
                    f"{seconds} s"
                )
            else:
                message = (
                    f"the API key's {self.per_minute} {self._noun}s a minute are used up: "
                    f"{units} wanted, {left} left; try again in {seconds} s"
                )
            raise Refused(message, wait_s)
        self._left -= units

    def give(self, units: int) -> None:
        """Give back unused units; a negative number uses up more."""
        if self.per_minute:
            self._left = min(self.per_minute, self.left() + units)

    def used(self) -> float:
        """Units that are used up now."""
        return self.per_minute - self.left()

    def has_used(self, units: float) -> None:
        """At least `units` units are used up now."""
        self._left = min(self.left(), self.per_minute - units)


Spent = Callable[[str, int, int], None]
"""Called with the name of a key, and the requests and tokens that it used up or gave back."""


class Account:
    """What one API key has used.

    Args:
        name: of the key.
        spent: told what is used here.
    """

    def __init__(
        self,
        name: str,
        clock: Callable[[], float],
        spent: Spent = lambda name, requests, tokens: None,
    ) -> None:
        self.name = name
        self._spent = spent
        self._requests = Bucket("request", clock)
        self._tokens = Bucket("token", clock)

    def limit(self, requests_per_minute: int, tokens_per_minute: int) -> None:
        """Set the limits; 0 is no limit."""
        self._requests.limit(requests_per_minute)
        self._tokens.limit(tokens_per_minute)

    def ask(self) -> None:
        """Count one more request. Raises Refused if there were too many."""
        self._requests.take(1)
        self._spent(self.name, 1, 0)

    def spend(self, requests: int, tokens: int) -> None:
        """Count what was used at another gateway."""
        self._requests.give(-requests)
        self._tokens.give(-tokens)

    def used(self) -> tuple[float, float]:
        """Requests and tokens that are used up now."""
        return self._requests.used(), self._tokens.used()

    def has_used(self, requests: float, tokens: float) -> None:
        """At least so many requests and tokens are used up now."""
        self._requests.has_used(requests)
        self._tokens.has_used(tokens)

    def own(self, prompts: Sequence[Sequence[int]], jobs: Sequence[Job]) -> tuple[Job, ...]:
        """The jobs in this key's name.

        Answers without `max_tokens` are limited to what a minute's tokens allow.
        """
        jobs = tuple(replace(job, caller=self.name) for job in jobs)
        if not self._tokens.per_minute:
            return jobs
        most = (self._tokens.per_minute - sum(map(len, prompts))) // len(jobs)
        return tuple(_cut(job, most) if job.open_ended else job for job in jobs)

    @contextmanager
    def spending(
        self, prompts: Sequence[Sequence[int]], jobs: Sequence[Job], records: Sequence[Record]
    ) -> Iterator[None]:
        """Reserve the tokens that an answer may use while the block runs; then count those used.

        For an answer without `max_tokens` a share of the minute's tokens is reserved.

        Raises:
            Invalid, Refused: see `Bucket.take`.
        """
        prompt = sum(map(len, prompts))
        share = max(1, self._tokens.per_minute // SHARES // len(jobs))
        limits = [_cut(job, share) if job.open_ended else job for job in jobs]
        held = prompt + sum(job.sampling.max_tokens for job in limits)
        self._tokens.take(held)
        self._spent(self.name, 0, held)
        try:
            yield
        finally:
            begun = any(record.placed for record in records)
            used = prompt * begun + sum(record.tokens for record in records)
            self._tokens.give(held - used)
            self._spent(self.name, 0, used - held)

    def headers(self) -> dict[str, str]:
        """The rate limit headers of OpenAI's API."""
        headers: dict[str, str] = {}
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket.per_minute:
                left = max(0, math.floor(bucket.left()))
                headers[f"x-ratelimit-limit-{name}"] = str(bucket.per_minute)
                headers[f"x-ratelimit-remaining-{name}"] = str(left)
                reset_s = math.ceil(bucket.wait_s(bucket.per_minute))
                headers[f"x-ratelimit-reset-{name}"] = f"{reset_s}s"
        return headers


def _cut(job: Job, most: int) -> Job:
    sampling = job.sampling
    tokens = min(sampling.max_tokens, max(1, sampling.min_tokens, most))
    return replace(job, sampling=replace(sampling, max_tokens=tokens))
