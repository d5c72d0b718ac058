"""Measures a running cluster: which prompts and batches, how often, until the time is over."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

from msgspec.structs import replace

from sps2.cli.simulator.fitting import Behind, Prompt, Step
from sps2.cli.simulator.probes import Bytes, Probes, Report, Target
from sps2.common.errors import Invalid, Refused

SHORTEST = 4
LEAST = 128
"""Tokens of prompt that a cluster must have room for to be measured."""
LENGTHS = 12
"""Of prompts that one shard computes."""
LONGEST_SHARE = 0.06
"""The longest prompt takes about this share of the time."""
GROWTH = 2.3
"""What doubling a prompt makes of its time, about, until pairs prevail."""
WARM_UP = (16, 64, 16)
PER_SHARD = (1, 2, 4, 8)
"""Answers that a decode shard has at once."""
OVERTIME = 1.5
"""Everything is measured once within this many times the wanted time, or left out."""


@dataclass
class Measured:
    """The medians of all repeats, short prompts and small batches first."""

    prompts: list[Prompt] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    behind: list[Behind] = field(default_factory=list)
    exchanged: list[Bytes] = field(default_factory=list)
    repeats: int = 0
    """Of the condition that was measured least."""


@dataclass
class _Condition:
    """Something to measure, with what was found so far and how long it took at first."""

    label: str
    measure: Callable[[], Awaitable[None]]
    took_s: float = 0.0
    times: int = 0


class Measuring:
    """Measures for about `seconds`.

    Args:
        report: shows the progress.
    """

    def __init__(self, probes: Probes, target: Target, seconds: float, report: Report) -> None:
        self._probes = probes
        self._target = target
        self._seconds = seconds
        self._report = report
        self._began_s = perf_counter()
        self._prompts: dict[tuple[str, int, int], list[Prompt]] = {}
        self._steps: dict[tuple[bool, int, float, int], list[Step]] = {}
        self._behind: dict[tuple[int, int], list[Behind]] = {}

    async def run(self) -> Measured:
        """Measure everything. Raises Invalid if the cluster is too small, Refused if it is busy."""
        if self._target.longest < LEAST:
            raise Invalid(
                f"the cluster is too small to be measured: it has room for prompts of "
                f"{self._target.longest} tokens, and {LEAST} are needed"
            )
        for tokens in WARM_UP:
            await self._probes.prefill(tokens, min(2, self._target.prefillers))
        longest = await self._find_longest()
        conditions = self._conditions(longest)
        for each in conditions:
            if self._elapsed_s < OVERTIME * self._seconds:
                await self._measure(each)
        while left := [
            each
            for each in conditions
            if each.times and self._elapsed_s + each.took_s < self._seconds
        ]:
            await self._measure(min(left, key=lambda each: (each.times, each.took_s)))
        if not self._steps:
            raise Refused("no decode steps could be measured: others' requests came in between")
        return self._found(min(each.times for each in conditions if each.times))

    @property
    def _elapsed_s(self) -> float:
        return perf_counter() - self._began_s

    async def _find_longest(self) -> int:
        """The longest prompt that fits the time: doubles until the next one would be too long."""
        tokens, took_s = min(256, self._target.longest), 0.0
        while True:
            found = await self._prefill("alone", tokens, 1)
            took_s = found.ttft_s
            wanted = min(2 * tokens, self._target.longest)
            if wanted == tokens or took_s * GROWTH > LONGEST_SHARE * self._seconds:
                return tokens
            tokens = wanted

    def _conditions(self, longest: int) -> list[_Condition]:
        target = self._target
        made = [
            self._of_prefill("alone", tokens, 1)
            for tokens in _geometric(SHORTEST, longest, LENGTHS)
        ]
        made += self._decoding(longest)
        if target.decoders > 1 or not target.capacity:
            for cached, tokens in ((longest // 4, 16), (longest // 2, 16), (longest // 2, 128)):
                if cached >= 2 * target.page_tokens:
                    made.append(self._of_behind(cached, tokens))
        if target.prefillers > 1:
            for tokens in _geometric(32, longest // 4, 4):
                made.append(self._of_prefill("beside", tokens, target.prefillers))
            degrees = sorted({2, target.prefillers})
            for degree in degrees:
                for tokens in _geometric(max(64, 2 * target.page_tokens), longest, 5):
                    made.append(self._of_prefill("shared", tokens, degree))
        return made

    def _decoding(self, longest: int) -> list[_Condition]:
        target, spread = self._target, self._target.decode_span_tokens
        batches = [(1, 16), *((target.decoders * each, 16) for each in PER_SHARD)]
        local = min(longest, spread)
        batches += [(1, local // 4), (1, local // 2), (4, local // 2), (1, local), (2, local)]
        if target.decoders > 1 and spread < 2 * longest and spread * 1.5 < target.longest:
            batches += [(1, spread * 9 // 8), (2, spread * 9 // 8), (1, spread * 11 // 8)]
        return [
            self._of_steps(*each)
            for each in dict.fromkeys(batches)
            if each[0] * (each[1] + 64) < target.longest
        ]

    def _of_prefill(self, kind: str, tokens: int, shards: int) -> _Condition:
        async def measure() -> None:
            await self._prefill(kind, tokens, shards)

        what = {"beside": f"{shards} prompts at once", "shared": f"SP degree {shards}"}
        return _Condition(f"{what.get(kind, 'a prompt')}: {tokens:,} tokens", measure)

    def _of_steps(self, sequences: int, context: int) -> _Condition:
        async def measure() -> None:
            for step in await self._probes.steps(sequences, context):
                key = step.is_spread, context, step.sequences, step.busy
                self._steps.setdefault(key, []).append(step)

        return _Condition(f"steps of {sequences}: {context:,} tokens each", measure)

    def _of_behind(self, cached: int, tokens: int) -> _Condition:
        async def measure() -> None:
            if found := await self._probes.behind(cached, tokens):
                self._behind.setdefault((cached, tokens), []).append(found)

        return _Condition(f"{tokens} tokens behind {cached:,} cached ones", measure)

    async def _prefill(self, kind: str, tokens: int, shards: int) -> Prompt:
        if kind == "beside":
            found = await self._probes.prefill(tokens, 1, shards)
        else:
            found = await self._probes.prefill(tokens, shards)
        self._prompts.setdefault((kind, shards, tokens), []).append(found)
        return found

    async def _measure(self, condition: _Condition) -> None:
        self._report(condition.label, min(1.0, self._elapsed_s / self._seconds))
        start_s = perf_counter()
        await condition.measure()
        condition.took_s = perf_counter() - start_s
        condition.times += 1

    def _found(self, repeats: int) -> Measured:
        prompts = [
            replace(
                found[0],
                ttft_s=median(each.ttft_s for each in found),
                prefill_s=median(each.prefill_s for each in found),
                attention_s=median(each.attention_s for each in found),
            )
            for _, found in sorted(self._prompts.items())
        ]
        steps = [
            replace(
                found[0],
                keys=sum(each.keys for each in found) / len(found),
                seconds=median(each.seconds for each in found),
            )
            for _, found in sorted(self._steps.items())
        ]
        behind = [
            found[0]._replace(ttft_s=median(each.ttft_s for each in found))
            for _, found in sorted(self._behind.items())
        ]
        return Measured(prompts, steps, behind, self._probes.exchanged, repeats)


def _geometric(first: int, last: int, count: int) -> list[int]:
    """About `count` numbers from `first` to `last`, with equal ratios."""
    first = min(first, last)
    ratio = (last / first) ** (1 / (count - 1))
    return sorted({round(first * ratio**index) for index in range(count)})
