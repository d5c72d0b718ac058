"""Datasets of real text: passages, and prompts and conversations of files."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sps2.cli.bench import documents
from sps2.cli.bench.serve.backends import Prompt
from sps2.cli.bench.serve.jobs import CHARACTERS, Job, Wanted, as_prompt, count
from sps2.cli.bench.serve.prompts import Prompts
from sps2.cli.workload.requests import Turn
from sps2.cli.workload.rows import broken, lines
from sps2.common.errors import Invalid
from sps2.common.validation import MALFORMED

if TYPE_CHECKING:
    from sps2.common.text.tokens import Tokenizer

ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names."""


def passages(wanted: Wanted, _: Prompts, tokenizer: "Tokenizer | None") -> list[Job]:
    """Passages of a text, or of those that come with Python."""
    tokens, answer = wanted.prompt_tokens or 550, wanted.answer_tokens or 150
    text = documents.read("manual" if wanted.path is None else str(wanted.path))
    if len(text) < CHARACTERS:
        raise Invalid(f"{wanted.path} has no text")
    draw = random.Random(f"text {wanted.seed}")
    made = []
    for at_s in wanted.arrivals.times_s(wanted.count, wanted.seed):
        passage = _passage(text, tokens, draw.randrange(len(text)), tokenizer)
        turn = Turn(at_s, tokens, answer)
        made.append(Job(turn, lambda _, passage=passage: as_prompt(wanted, passage)))  # type: ignore[misc]
    return made


def _passage(text: str, tokens: int, start: int, tokenizer: "Tokenizer | None") -> str:
    characters = tokens * CHARACTERS * (2 if tokenizer else 1)
    long = text[start:] + text * (characters // len(text) + 1)
    if tokenizer is None:
        return long[:characters]
    return tokenizer.decode(tokenizer.encode(long[:characters], False)[:tokens])


class _Prompt(msgspec.Struct):
    prompt: str
    output_tokens: int | None = None


def custom(wanted: Wanted, _: Prompts, tokenizer: "Tokenizer | None") -> list[Job]:
    """Prompts of a file of JSON lines: `{"prompt": "...", "output_tokens": 100}`."""
    assert wanted.path is not None
    rows: list[_Prompt] = []
    for number, line in enumerate(lines(wanted.path), 1):
        if line.isspace() or len(rows) == wanted.count:
            continue
        try:
            row = msgspec.json.decode(line, type=_Prompt)
        except MALFORMED as error:
            raise broken(wanted.path, number, str(error)) from error
        if not row.prompt or (row.output_tokens is not None and row.output_tokens < 1):
            raise broken(wanted.path, number, "an empty prompt, or an answer of less than 1 token")
        rows.append(row)
    if not rows:
        raise Invalid(f"{wanted.path} has no prompts")
    made = []
    for at_s, row in zip(wanted.arrivals.times_s(len(rows), wanted.seed), rows, strict=True):
        answer = wanted.answer_tokens or row.output_tokens or 256
        turn = Turn(at_s, count(row.prompt, tokenizer), answer)
        made.append(Job(turn, lambda _, row=row: as_prompt(wanted, row.prompt)))  # type: ignore[misc]
    return made


class _Said(msgspec.Struct):
    """A message, of OpenAI's format or of ShareGPT's."""

    role: str = ""
    content: str = ""
    sender: str = msgspec.field(default="", name="from")
    value: str = ""


class _Conversation(msgspec.Struct):
    messages: list[_Said] = []
    conversations: list[_Said] = []


def conversations(wanted: Wanted, _: Prompts, tokenizer: "Tokenizer | None") -> list[Job]:
    """Conversations of a file: each turn is sent after the answer to the turn before it.

    The history that is sent has the answers that the server gave, not those of the file.
    """
    assert wanted.path is not None
    draw = random.Random(f"think {wanted.seed}")
    sessions = []
    total = 0
    for number, row in enumerate(_read_conversations(wanted.path), 1):
        session = _session(wanted, row, f"{number}", draw, tokenizer)[: wanted.count - total]
        total += len(session)
        if session:
            sessions.append(session)
    if not sessions:
        raise Invalid(f"{wanted.path} has no conversation that begins with a user's message")
    times = wanted.arrivals.times_s(len(sessions), wanted.seed)
    made = [
        replace(job, turn=msgspec.structs.replace(job.turn, at_s=at_s))
        for at_s, session in zip(times, sessions, strict=True)
        for job in session
    ]
    return sorted(made, key=lambda job: job.turn.at_s)


def _read_conversations(path: Path) -> list[_Conversation]:
    """From a JSON list, or from JSON lines."""
    text = "".join(lines(path))
    if text.lstrip().startswith("["):
        try:
            return msgspec.json.decode(text, type=list[_Conversation])
        except MALFORMED as error:
            raise Invalid(f"{path}: {error}") from error
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            if line.strip():
                found.append(msgspec.json.decode(line, type=_Conversation))
        except MALFORMED as error:
            raise broken(path, number, str(error)) from error
    return found


def _session(
    wanted: Wanted,
    row: _Conversation,
    name: str,
    draw: random.Random,
    tokenizer: "Tokenizer | None",
) -> list[Job]:
    said = [
        (ROLES.get(each.role or each.sender, each.role or each.sender), each.content or each.value)
        for each in row.messages or row.conversations
    ]
    opening = [each for each in said[:1] if each[0] == "system"]
    rest = said[len(opening) :]
    asked = [text for role, text in rest if role == "user"]
    answers = [text for role, text in rest if role == "assistant"]
    if not rest or rest[0][0] != "user":
        return []
    made = []
    for index, _ in enumerate(asked):
        answer = count(answers[index], tokenizer) if index < len(answers) else 128
        history = sum(count(text, tokenizer) for text in asked[: index + 1] + answers[:index])
        think_s = None
        if index:
            think_s = draw.expovariate(1 / wanted.think_s) if wanted.think_s else 0.0
        turn = Turn(0.0, history, wanted.answer_tokens or answer, (), name, think_s)
        made.append(Job(turn, _after(wanted, opening, asked[: index + 1])))
    return made


def _after(
    wanted: Wanted, opening: Sequence[tuple[str, str]], asked: Sequence[str]
) -> Callable[[Sequence[str]], Prompt]:
    def make(answers: Sequence[str]) -> Prompt:
        said = [*opening]
        for index, question in enumerate(asked):
            said.append(("user", question))
            if index < len(asked) - 1:
                said.append(("assistant", answers[index]))
        if wanted.is_chat:
            return [{"role": role, "content": content} for role, content in said]
        return "".join(f"{role}: {content}\n" for role, content in said) + "assistant:"

    return make
