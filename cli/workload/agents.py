"""Conversations of agents: sessions in a closed loop, whose prompts grow turn by turn."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import msgspec

from sps2.cli.workload.requests import Turn
from sps2.cli.workload.rows import answer_tokens, broken, lines, prompt_tokens, seconds
from sps2.common.validation import MALFORMED

BLOCK_TOKENS = 512


class _Conversation(msgspec.Struct):
    id: str
    rows: list[tuple[float, float, float, float, float]]


def read_agents(path: Path) -> Iterator[list[Turn]]:
    """The turns of each conversation; times are seconds since its start.

    A line of the file is `{"id": ..., "rows": [[seconds since the start, prompt tokens, new tokens,
    answer tokens, seconds since the answer before], ...]}`.
    """
    decode = msgspec.json.Decoder(_Conversation).decode
    ids = itertools.count()
    seen: dict[str, int] = {}
    with closing(lines(path)) as rows:
        for number, line in enumerate(rows, 1):
            if line.isspace():
                continue
            try:
                conversation = decode(line)
                name = conversation.id
                if not conversation.rows:
                    raise ValueError("a conversation without rows")
                if seen.setdefault(name, number) != number:
                    raise ValueError(f"conversation {name!r} is in row {seen[name]} too")
                yield _session(conversation, ids)
            except MALFORMED as error:
                raise broken(path, number, str(error)) from error


def _session(conversation: _Conversation, ids: Iterator[int]) -> list[Turn]:
    for (earlier, *_), (later, *_) in pairwise(conversation.rows):
        if later < earlier:
            raise ValueError(f"a turn at {later:g} s after one at {earlier:g} s")
    turns: list[Turn] = []
    for index, (at_s, prompt, new, answer, think_s) in enumerate(conversation.rows):
        try:
            length = prompt_tokens(prompt)
            if not 0 <= new <= length:
                raise ValueError(f"{new:g} new tokens of a prompt of {length}")
            before = turns[-1] if turns else None
            shared = length - int(new) if before is not None else 0
            turns.append(
                Turn(
                    seconds(at_s, "a time"),
                    length,
                    answer_tokens(answer),
                    grown(before.blocks if before else (), length, shared, ids),
                    conversation.id,
                    seconds(think_s, "a pause") if before is not None else None,
                )
            )
        except ValueError as error:
            raise ValueError(f"turn {index + 1}: {error}") from error
    return turns


def grown(before: Sequence[int], tokens: int, shared: int, ids: Iterator[int]) -> tuple[int, ...]:
    """The blocks of a prompt of `tokens` tokens whose first `shared` are those of the turn before.

    Blocks cannot be shared in part: the number is rounded to whole ones.
    """
    count = -(-tokens // BLOCK_TOKENS)
    kept = min(round(shared / BLOCK_TOKENS), len(before), tokens // BLOCK_TOKENS)
    return (*before[:kept], *itertools.islice(ids, count - kept))
