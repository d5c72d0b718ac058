"""Fits a profile's constants to measurements, and checks them on others."""

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import sqrt
from statistics import median
from typing import NamedTuple, TypeVar

import msgspec

from sps2.cli.simulator import least_squares
from sps2.cli.simulator.profile import Checked, Curve, Profile, at

ROW_KNOTS = (4, 16, 64, 256)
"""Where the lines of `Profile.pass_s` meet; the longest prompt is the last point."""
BATCH_KNOTS = (1, 4)
ATTENTION_WEIGHT = 1.0
"""How much the time of attention alone counts, where that to the first token counts 1."""
DRAWS = 2000
"""Of the bootstrap."""
VISIBLE = 0.9
"""A slower link must make the error smaller by this factor, or transfers count as hidden."""
LINKS = (100.0, 40.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
"""Gbit/s that are tried."""


class Share(NamedTuple):
    """What one shard computes of a prompt; see `Profile.prefill_s`."""

    rows: int
    pairs: float


class Prompt(msgspec.Struct, frozen=True):
    """A measured prefill: of one prompt, or of several alike at once on shards of their own.

    shares: of the shards that computed it; of several prompts, of all. passes: in how many chunks,
        one after another. moved: bytes over the busiest link. exchange_s: seconds in which shards
        exchanged something or waited for it, added up. attention_s: seconds of attention, if one
        shard computed it.
    """

    shares: tuple[Share, ...]
    ttft_s: float
    prefill_s: float
    attention_s: float = 0.0
    is_shared: bool = False
    """Whether the shards computed one prompt together."""
    moved: float = 0.0
    exchange_s: float = 0.0
    passes: int = 1

    @property
    def is_alone(self) -> bool:
        return len(self.shares) == 1


class Step(msgspec.Struct, frozen=True):
    """Measured decode steps of one shard.

    keys: on the shard that has most of them. busy: shards that decoded at that time.
    """

    sequences: float
    keys: float
    seconds: float
    is_spread: bool = False
    busy: int = 1


class Behind(NamedTuple):
    """A measured prefill of `tokens` tokens on one shard, behind `cached` ones on another."""

    cached: int
    tokens: int
    ttft_s: float


class Fitted(NamedTuple):
    """The constants of a profile; see `Profile`. link_gbit: None where transfers were hidden."""

    launch_s: float
    pass_s: Curve
    pair_s: float
    share_s: float
    step_s: Curve
    key_s: float
    remote_s: float
    link_gbit: float | None
    cores: float
    step_threads: float = 1.0
    prefix_s: float | None = None
    prefix_pair_s: float | None = None

    def put_into(self, profile: Profile) -> Profile:
        """A profile with these constants."""
        given = self._asdict() | {"link_gbit": self.link_gbit or profile.link_gbit}
        return msgspec.structs.replace(profile, **given)


Measured = TypeVar("Measured", Prompt, Step)


def fit(
    prompts: Sequence[Prompt],
    steps: Sequence[Step],
    most_cores: float,
    behind: Sequence[Behind] = (),
) -> Fitted:
    """The constants that predict measurements best; errors count relative to what was measured.

    Args:
        prompts: with some that one shard computed alone, of different lengths.
        steps: with some that one shard decoded, in batches of different sizes.
        most_cores: how many shards could compute at the same time at most; 0: each has its own
            device.
        behind: of several numbers of cached tokens, if there are any.
    """
    alone = [each for each in prompts if each.is_alone]
    launch_s = max(0.0, median(each.ttft_s - each.prefill_s for each in alone))
    pass_s, pair_s = _prefill(alone, launch_s)
    cores, share_s, link_gbit = most_cores, 0.0, None
    beside = [each for each in prompts if not each.is_alone]
    if beside:
        cores, share_s, link_gbit = _together(beside, launch_s, pass_s, pair_s, most_cores)
    prefill = launch_s, pass_s, pair_s, share_s
    step_s, key_s, remote_s, step_threads = _decode(steps, cores)
    waits = _behind(behind, launch_s, pass_s, pair_s)
    return Fitted(*prefill, step_s, key_s, remote_s, link_gbit, cores, step_threads, *waits)


def ttft_s(profile: Profile, prompt: Prompt, hides_links: bool = False) -> float:
    """The predicted time to the first token of a prefill that nothing else delays."""
    each = [
        prompt.passes
        * profile.prefill_s(max(1, round(rows / prompt.passes)), pairs / prompt.passes)
        + profile.share_s * prompt.is_shared
        for rows, pairs in prompt.shares
    ]
    moving = 0.0 if hides_links else prompt.moved / (profile.link_gbit * 1.25e8)
    return profile.launch_s + max(side_by_side(each, profile.cores), moving)


def step_s(profile: Profile, step: Step) -> float:
    """The predicted time of a decode step."""
    slower = _slower(step, profile.step_threads, profile.cores)
    computing_s = profile.decode_s(step.sequences, step.keys, False)
    return slower * computing_s + step.is_spread * profile.remote_s


def _slower(step: Step, threads: float, cores: float) -> float:
    """How much slower a step computes because other shards do: each keeps some threads busy."""
    return max(1.0, step.busy * threads / cores) if cores else 1.0


def side_by_side(seconds: Sequence[float], cores: float) -> float:
    """When the last of several pieces of work ends, which share some cores; 0: each has its own."""
    left, now_s, done_s = sorted(seconds), 0.0, 0.0
    for index, each in enumerate(left):
        running = len(left) - index
        now_s += (each - done_s) * (max(1.0, running / cores) if cores else 1.0)
        done_s = each
    return now_s


def split(points: Sequence[Measured], place: Callable[[Measured], object]) -> list[list[Measured]]:
    """Points to fit, and a third to check with: every third of each `place`, in their order.

    The first and the last of a place are always fitted, so that nothing is checked beyond them.
    """
    fitted: list[Measured] = []
    held_out: list[Measured] = []
    for kind in dict.fromkeys(map(place, points)):
        alike = [each for each in points if place(each) == kind]
        for index, each in enumerate(alike):
            is_end = index in (0, len(alike) - 1)
            (held_out if index % 3 == 1 and not is_end else fitted).append(each)
    return [fitted, held_out]


def checked(pairs: Sequence[tuple[float, float]], seed: int = 0) -> Checked:
    """The error of predictions, with its interval.

    Args:
        pairs: predicted and measured.
    """
    residuals = [predicted / measured for predicted, measured in pairs]
    errors = [abs(each - 1) for each in residuals]
    draw = random.Random(seed)
    means = sorted(sum(draw.choices(errors, k=len(errors))) / len(errors) for _ in range(DRAWS))
    low, high = means[round(0.025 * DRAWS)], means[round(0.975 * DRAWS) - 1]
    return Checked(sum(errors) / len(errors), low, high, tuple(residuals))


def margin_of(checks: Sequence[Checked]) -> float:
    """Half the width of the 95 % interval of a predicted time, from all residuals."""
    squares = [(each - 1) ** 2 for check in checks for each in check.residuals]
    return 1.96 * sqrt(sum(squares) / len(squares)) if squares else 0.0


def _prefill(alone: Sequence[Prompt], launch_s: float) -> tuple[Curve, float]:
    longest = max(each.shares[0].rows for each in alone)
    knots = [each for each in ROW_KNOTS if each < longest] + [max(longest, 2)]
    rows: list[list[float]] = []
    values: list[float] = []
    counts: list[float] = []
    for prompt in alone:
        share, passes = prompt.shares[0], prompt.passes
        lines = _lines(share.rows / passes, knots)
        rows.append([*(passes * each for each in lines), share.pairs, 0.0, 0.0])
        values.append(max(prompt.ttft_s - launch_s, prompt.prefill_s / 2))
        counts.append(1.0)
    for prompt in alone:
        if prompt.attention_s > 0:
            share = prompt.shares[0]
            rows.append([*(0.0 for _ in knots), share.pairs, 1.0, float(share.rows)])
            values.append(prompt.attention_s)
            counts.append(ATTENTION_WEIGHT)
    *lines, pair_s, _, _ = least_squares.fit(rows, values, counts)
    return _curve(knots, lines), pair_s


def _together(
    beside: Sequence[Prompt],
    launch_s: float,
    pass_s: Curve,
    pair_s: float,
    most_cores: float,
) -> tuple[float, float, float | None]:
    """Cores, `share_s` and `link_gbit`: the best of a grid. `share_s` is that of the median."""
    base = Profile(
        name="",
        model="",
        machine="",
        is_measured=True,
        sources={},
        margin=0.0,
        launch_s=launch_s,
        pass_s=pass_s,
        pair_s=pair_s,
        share_s=0.0,
        step_s=((1, 0.0),),
        key_s=0.0,
        remote_s=0.0,
        link_gbit=1e9,
        link_latency_s=0.0,
    )
    grid = [most_cores]
    if most_cores:
        count = max(1, round((most_cores - 1) / 0.05))
        grid = [1 + (most_cores - 1) * i / count for i in range(count + 1)]

    def best(link_gbit: float | None) -> tuple[float, float, float]:
        found = []
        for cores in grid:
            tried = msgspec.structs.replace(base, cores=cores, link_gbit=link_gbit or 1e9)
            slower = [max(1.0, len(each.shares) / cores) if cores else 1.0 for each in beside]
            missing = [
                (each.ttft_s - ttft_s(tried, each)) / factor
                for each, factor in zip(beside, slower, strict=True)
                if each.is_shared
            ]
            share_s = max(0.0, median(missing)) if missing else 0.0
            tried = msgspec.structs.replace(tried, share_s=share_s)
            errors = [abs(ttft_s(tried, each) / each.ttft_s - 1) for each in beside]
            found.append((sum(errors) / len(errors), cores, share_s))
        return min(found)

    error, cores, share_s = best(None)
    link_gbit = None
    least = max(
        (each.moved * 8e-9 / each.exchange_s for each in beside if each.exchange_s), default=0.0
    )
    for each in LINKS:
        if each < least:  # transfers would have taken longer than they did
            break
        slower_error, slower_cores, slower_share_s = best(each)
        if slower_error < VISIBLE * error:
            error, cores, share_s, link_gbit = slower_error, slower_cores, slower_share_s, each
    return cores, share_s, link_gbit


def _decode(steps: Sequence[Step], cores: float) -> tuple[Curve, float, float, float]:
    """`step_s`, `key_s`, `remote_s` and `step_threads`.

    The latter is the best of a grid, in which one shard alone is never slowed.
    """
    most = max(each.sequences for each in steps)
    knots = [each for each in BATCH_KNOTS if each < most] + [max(round(most), 2)]
    has_busy = cores > 1 and any(each.busy > 1 for each in steps)
    count = max(1, round((cores - 1) / 0.05)) if has_busy else 0
    found = []
    for threads in [1 + (cores - 1) * i / count for i in range(count + 1)] if count else [1.0]:
        rows = [
            [
                *(_slower(step, threads, cores) * each for each in _lines(step.sequences, knots)),
                _slower(step, threads, cores) * step.keys,
                float(step.is_spread),
            ]
            for step in steps
        ]
        parts = least_squares.fit(rows, [each.seconds for each in steps])
        errors = [
            abs(sum(a * b for a, b in zip(row, parts, strict=True)) / step.seconds - 1)
            for row, step in zip(rows, steps, strict=True)
        ]
        found.append((sum(errors), threads, parts))
    _, step_threads, (*lines, key_s, remote_s) = min(found, key=lambda each: each[:2])
    return _curve(knots, lines), key_s, remote_s, step_threads


def _behind(
    behind: Sequence[Behind], launch_s: float, pass_s: Curve, pair_s: float
) -> tuple[float | None, float | None]:
    """`prefix_s` and `prefix_pair_s`; None if they were not measured."""
    rows, values = [], []
    for cached, tokens, took_s in behind:
        own_s = launch_s + at(pass_s, tokens) + pair_s * tokens * tokens / 2
        if took_s > own_s:
            rows.append([1.0, float(cached * tokens)])
            values.append(took_s - own_s)
    if len(rows) < 2:
        return None, None
    prefix_s, prefix_pair_s = least_squares.fit(rows, values)
    return prefix_s, prefix_pair_s


def _lines(count: float, knots: Sequence[int]) -> list[float]:
    """The value of each part of a curve: its height at the first knot, then each line's slope."""
    parts = [1.0]
    for index, (start, stop) in enumerate(pairwise(knots)):
        is_last = index == len(knots) - 2
        inside = count - start if is_last else min(count, stop) - start
        parts.append(max(0.0, inside))
    return parts


def _curve(knots: Sequence[int], parts: Sequence[float]) -> Curve:
    points = [(knots[0], parts[0])]
    for (start, stop), slope in zip(pairwise(knots), parts[1:], strict=True):
        points.append((stop, points[-1][1] + slope * (stop - start)))
    return tuple(points)
