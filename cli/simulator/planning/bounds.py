"""What a configuration cannot exceed, from formulas: the first, cheap judgement."""

from collections.abc import Callable
from functools import cache
from math import ceil, inf
from typing import Literal, NamedTuple

from sps2.cli.simulator.intervals import at as quantile
from sps2.cli.simulator.planning.candidates import Candidate, Pool, Setups
from sps2.cli.simulator.planning.loads import Load
from sps2.cli.simulator.profile import Profile
from sps2.cli.simulator.setup import Setup
from sps2.cli.simulator.statistics import Objectives
from sps2.common.errors import Invalid

Limit = Literal["", "memory", "TTFT", "TBT", "load", "budget", "worth"]
SPANNED = ("sps2", "lars", "fcfs", "preflow", "sjf")
"""Policies that take an SP degree from `prefill_span_tokens`, and never a larger one."""
TINY = 1e-12
BALANCING = 50
"""Steps to a balance."""
BESIDE_FORMULAS = 1.05
"""Formulas know averages only: a simulation may find so much more."""


class Bound(NamedTuple):
    """Of one candidate.

    limit: why no rate is possible; empty: one may be. reason: in words. excess: by how much the
        limit is exceeded: 1.2 is 20 % over. most: with a higher rate, shards cannot keep up in the
        long run, with batches whose decode steps are within the TBT. likely: a guess of the highest
        rate within the SLOs.
    ttft_s, tbt_s: at the quantile that has to meet the SLOs, on an idle cluster, at least.
    """

    limit: Limit = ""
    reason: str = ""
    excess: float = 0.0
    most: float = 0.0
    likely: float = 0.0
    ttft_s: float = 0.0
    tbt_s: float = 0.0


class _Work(NamedTuple):
    """What an average start of the workload needs: seconds of prefill at least, tokens to decode.
    keys: mean number that an answer attends to. room: for so many
    answers."""

    prefill_s: float
    tokens: float
    keys: float
    room: float


class Bounds:
    """Judges candidates for a workload and SLOs.

    Args:
        attainment: the share of requests that must meet them.
    """

    def __init__(
        self, setups: Setups, load: Load, objectives: Objectives, attainment: float
    ) -> None:
        self._setups, self._load = setups, load
        self._objectives, self._attainment = objectives, attainment
        self._work = cache(self._work_of)
        self._ttft = cache(self._ttft_of)
        self._tbt = cache(self._tbt_of)

    def of(self, candidate: Candidate) -> Bound:
        try:
            setup = self._setups.usual(candidate.pool, candidate.tp)
        except Invalid as error:
            return Bound("memory", str(error), excess=inf)
        if (excess := self._room(candidate, setup)) > 1:
            return Bound(
                "memory",
                f"the KV of {1 - self._attainment:.0%} of the requests is larger than all pools, "
                f"by {excess - 1:.0%} at least",
                excess,
            )
        degree = candidate.degree if candidate.policy in SPANNED else _widest(candidate)
        degrees = tuple(degree(turn.prompt_tokens) for turn in self._load.turns)
        ttft_s = self._ttft(candidate.pool, candidate.tp, degrees)
        keepers = candidate.decode + candidate.mixed
        tbt_s = self._tbt(candidate.pool, candidate.tp, keepers)
        over = [
            (value / limit, name, value, limit)
            for name, value, limit in (
                ("TTFT", ttft_s, self._objectives.ttft_s),
                ("TBT", tbt_s, self._objectives.tbt_s),
            )
            if limit is not None and value > limit
        ]
        if over:
            excess, name, value, limit = max(over)
            return Bound(
                "TTFT" if name == "TTFT" else "TBT",
                f"on an idle cluster, {self._attainment:.0%} of the requests have a {name} of at "
                f"least {value * 1000:,.0f} ms, {excess - 1:.0%} over {limit * 1000:,.0f} ms",
                excess,
                ttft_s=ttft_s,
                tbt_s=tbt_s,
            )
        most, likely = self._rates(candidate, setup.profile)
        return Bound(most=most, likely=likely, ttft_s=ttft_s, tbt_s=tbt_s)

    def alone(self, candidate: Candidate) -> Callable[[int], float]:
        """About the TTFT of a prompt on an idle cluster, without a cache."""
        profile = self._setups.usual(candidate.pool, candidate.tp).profile
        return cache(lambda tokens: _lone_s(profile, tokens, 0, candidate.degree(tokens)))

    def answers(self, candidate: Candidate, rate: float) -> float:
        """How many answers each shard that decodes has under way, in a balance at some rate; not
        more than are within the TBT."""
        profile = self._setups.usual(candidate.pool, candidate.tp).profile
        work = self._work(candidate.pool, candidate.tp)
        beside_s = work.prefill_s / work.tokens if candidate.mixed else 0.0
        most, _ = self._batch(profile, work, beside_s)
        per_s = rate * work.tokens / (candidate.decode + candidate.mixed)
        batch = 0.0
        for _ in range(BALANCING):
            step_s = profile.decode_s(max(1.0, batch), batch * work.keys, False)
            batch = min(most, per_s * (step_s + batch * beside_s))
        return batch

    def _room(self, candidate: Candidate, setup: Setup) -> float:
        tokens = setup.pages * setup.config.kv.page_tokens
        tokens *= candidate.decode + candidate.mixed
        needs = sorted(turn.prompt_tokens + turn.answer_tokens for turn in self._load.turns)
        return quantile(needs, self._attainment) / max(1, tokens)

    def _rates(self, candidate: Candidate, profile: Profile) -> tuple[float, float]:
        """`Bound.most` and `likely`.

        In a balance, a mixed shard's decode steps are slowed by its prefills: as many as there are
        for each token of its answers.
        """
        work = self._work(candidate.pool, candidate.tp)
        beside_s = work.prefill_s / work.tokens if candidate.mixed else 0.0
        batch, step_s = self._batch(profile, work, beside_s)
        decode_s = work.tokens * step_s / batch
        if candidate.mixed:
            most = likely = candidate.mixed / decode_s
        else:
            likely = candidate.decode / decode_s
            most = min(candidate.prefill / work.prefill_s, BESIDE_FORMULAS * likely)
            likely = min(most, likely)
        if profile.cores:
            alone_s = self._batch(profile, work, 0.0)[1] / batch * work.tokens
            most = min(most, profile.cores / (work.prefill_s + alone_s))
        if candidate.mixed:
            most *= BESIDE_FORMULAS
        return most, min(most, likely)

    def _work_of(self, pool: Pool, tp: int) -> _Work:
        setup, load = self._setups.usual(pool, tp), self._load
        profile = setup.profile
        row_s = _least(profile.pass_s)
        prefill_s = keys = tokens = 0.0
        for turn, cached in zip(load.turns, load.cached, strict=True):
            new, steps = turn.prompt_tokens - cached, turn.answer_tokens - 1
            prefill_s += new * row_s + new * (cached + new / 2) * profile.pair_s
            tokens += steps
            keys += steps * (turn.prompt_tokens + steps / 2)
        mean = max(1.0, keys / tokens) if tokens else 1.0
        room = max(1.0, setup.pages * setup.config.kv.page_tokens / mean)
        return _Work(
            max(TINY, prefill_s / load.starts),
            max(TINY, tokens / load.starts),
            mean,
            room,
        )

    def _batch(self, profile: Profile, work: _Work, beside_s: float) -> tuple[float, float]:
        """The batch of a shard that decodes most tokens per second within the TBT, and its step.

        Args:
            beside_s: of prefills, for each token.
        """
        limit = self._objectives.tbt_s
        low, high = 1.0, work.room

        def step_s(batch: float) -> float:
            return max(TINY, profile.decode_s(batch, batch * work.keys, False) + batch * beside_s)

        if limit is not None and step_s(high) > limit:
            for _ in range(20):
                middle = (low * high) ** 0.5
                if step_s(middle) <= limit:
                    low = middle
                else:
                    high = middle
            high = low
        return high, step_s(high)

    def _ttft_of(self, pool: Pool, tp: int, degrees: tuple[int, ...]) -> float:
        profile, load = self._setups.usual(pool, tp).profile, self._load
        times = sorted(
            _lone_s(profile, turn.prompt_tokens - cached, cached, degree)
            for turn, cached, degree in zip(load.turns, load.cached, degrees, strict=True)
        )
        return quantile(times, self._attainment)

    def _tbt_of(self, pool: Pool, tp: int, keepers: int) -> float:
        profile = self._setups.usual(pool, tp).profile
        times = [
            profile.decode_s(1, turn.prompt_tokens / keepers, False)
            for turn in self._load.turns
            if turn.answer_tokens > 1
        ]
        times += [0.0] * (len(self._load.turns) - len(times))
        return quantile(sorted(times), self._attainment)


def _lone_s(profile: Profile, new: int, before: int, degree: int) -> float:
    pairs = new * (before + new / 2) / degree
    return profile.launch_s + profile.prefill_s(ceil(new / degree), pairs)


def _widest(candidate: Candidate) -> Callable[[int], int]:
    return lambda tokens: candidate.prefillers


def _least(curve: tuple[tuple[int, float], ...]) -> float:
    """Seconds of one more row, where rows are cheapest."""
    rows, seconds = curve[-1]
    least = min(seconds / rows for rows, seconds in curve)
    if len(curve) > 1:
        before, before_s = curve[-2]
        least = min(least, (seconds - before_s) / (rows - before))
    return max(0.0, least)
