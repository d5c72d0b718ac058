"""Datasets: what is sent, and when."""

import math
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from sps2.cli.bench.serve.backends import Prompt
from sps2.cli.bench.serve.jobs import Job, Wanted, as_prompt
from sps2.cli.bench.serve.prompts import Prompts
from sps2.cli.bench.serve.texts import conversations, custom, passages
from sps2.cli.workload import sources
from sps2.cli.workload.requests import Turn, Workload
from sps2.common.errors import Invalid

if TYPE_CHECKING:
    from sps2.common.text.tokens import Tokenizer


def jobs(wanted: Wanted, prompts: Prompts, tokenizer: "Tokenizer | None") -> list[Job]:
    """The requests of a dataset by time. Raises Invalid, and OSError if a file cannot be read."""
    make = BY_NAME.get(wanted.name)
    if wanted.path is None and wanted.name in ("trace", "custom", "conversations"):
        raise Invalid(f"--dataset-name {wanted.name} needs --dataset-path")
    if make is not None:
        return make(wanted, prompts, tokenizer)
    if wanted.path is not None and wanted.name != sources.AGENTS:
        raise Invalid(f"--dataset-name {wanted.name} reads no file; {', '.join(FROM_FILES)} do")
    return _traced(wanted, prompts, tokenizer)


def _random(wanted: Wanted, prompts: Prompts, _: object) -> list[Job]:
    if not 0 <= wanted.range_ratio < 1:
        raise Invalid(f"--random-range-ratio is from 0 to below 1, not {wanted.range_ratio:g}")
    if wanted.path is not None:
        raise Invalid("--dataset-name random reads no file")
    draw = random.Random(f"random {wanted.seed}")
    prefix = Turn(0, wanted.prefix_tokens, 1, (0,) if wanted.prefix_tokens else ())
    turns = []
    for at_s in wanted.arrivals.times_s(wanted.count, wanted.seed):
        prompt, answer = (
            _around(draw, length, wanted.range_ratio)
            for length in (wanted.prompt_tokens or 1024, wanted.answer_tokens or 128)
        )
        turns.append(Turn(at_s, prompt, answer))
    return [
        Job(
            replace(turn, prompt_tokens=turn.prompt_tokens + wanted.prefix_tokens),
            _made(wanted, prompts, turn, 1, number, prefix),
        )
        for number, turn in enumerate(turns)
    ]


def _around(draw: random.Random, length: int, ratio: float) -> int:
    return draw.randint(max(1, math.floor(length * (1 - ratio))), math.ceil(length * (1 + ratio)))


def _made(
    wanted: Wanted,
    prompts: Prompts,
    turn: Turn,
    block_tokens: int,
    number: int,
    prefix: Turn | None = None,
) -> Callable[[Sequence[str]], Prompt]:
    """Makes a prompt when it is wanted: those of a whole trace together would be too large."""

    def make(_: Sequence[str]) -> Prompt:
        if not wanted.is_text:
            ids = prompts.tokens(turn, block_tokens, number)
            if prefix is not None and prefix.blocks:
                return prompts.tokens(prefix, prefix.prompt_tokens, 0) + ids
            return ids
        text = prompts.text(turn, block_tokens, number)
        if prefix is not None and prefix.blocks:
            text = f"{prompts.text(prefix, prefix.prompt_tokens, 0)} {text}"
        return as_prompt(wanted, text)

    return make


def _traced(wanted: Wanted, prompts: Prompts, _: object) -> list[Job]:
    workload = _workload(wanted)
    if wanted.answer_tokens is not None:
        raise Invalid(f"--output-len has no effect on {wanted.name}, which has lengths of its own")
    if wanted.name == sources.AGENTS and not any(turn.session for turn in workload.turns):
        raise Invalid(f"{wanted.path} has no sessions: send it with --dataset-name trace")
    return [
        Job(turn, _made(wanted, prompts, turn, workload.block_tokens, number))
        for number, turn in enumerate(workload.turns)
    ]


def _workload(wanted: Wanted) -> Workload:
    arrivals = wanted.arrivals
    source = wanted.name if wanted.path is None else str(wanted.path)
    keeps_times = wanted.path is not None and wanted.is_self_timed and arrivals.last_rate is None
    rate: float | None = arrivals.rate
    if keeps_times and rate == math.inf:
        rate = None
    return sources.find(
        source,
        limit=wanted.count,
        rate=rate,
        cv=None if keeps_times else arrivals.cv,
        last_rate=arrivals.last_rate,
        strategy=arrivals.strategy,
        scale=wanted.scale,
        longest=wanted.longest,
        think_scale=wanted.think_scale,
        longest_think_s=wanted.longest_think_s,
        sessions=wanted.sessions,
        span_s=wanted.span_s,
        seed=wanted.seed,
    )


Maker = Callable[[Wanted, Prompts, "Tokenizer | None"], list[Job]]
BY_NAME: dict[str, Maker] = {
    "random": _random,
    "text": passages,
    "sonnet": passages,
    "custom": custom,
    "conversations": conversations,
    "trace": _traced,
}
"""The other names are those of `sources.names()`."""
FROM_FILES = ("trace", sources.AGENTS, "text", "custom", "conversations")
