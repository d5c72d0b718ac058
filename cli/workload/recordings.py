"""Recordings of our own: JSON lines, one request each."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from sps2.cli.workload.requests import Turn, Workload
from sps2.cli.workload.rows import answer_tokens, broken, first_line, lines, prompt_tokens, seconds
from sps2.common.validation import MALFORMED


class Head(msgspec.Struct):
    """The first line of a recording; without it blocks have 512 tokens."""

    workload: str
    block_tokens: int = 512


def write_workload(workload: Workload, path: Path) -> None:
    """Write a workload so that `read_recording` gives the same one."""
    encode = msgspec.json.Encoder().encode
    rows = [Head(workload.name, workload.block_tokens), *workload.turns]
    path.write_bytes(b"".join(encode(row) + b"\n" for row in rows))


def read_head(path: Path) -> Head | None:
    """What the first line says. Raises Invalid if it is a head that makes no sense."""
    first = first_line(path)
    if '"workload"' not in first:
        return None
    try:
        head = msgspec.json.decode(first, type=Head)
        if head.block_tokens < 1:
            raise ValueError(f"blocks of {head.block_tokens} tokens")
    except MALFORMED as error:
        raise broken(path, 1, str(error)) from error
    return head


def read_recording(path: Path) -> Iterator[Turn]:
    """The requests in the order of their rows."""
    head = read_head(path)
    size = 512 if head is None else head.block_tokens
    decode = msgspec.json.Decoder(Turn).decode
    with closing(lines(path)) as rows:
        for number, line in enumerate(rows, 1):
            if line.isspace() or (number == 1 and head is not None):
                continue
            try:
                turn = decode(line)
                seconds(turn.at_s, "a time")
                prompt_tokens(turn.prompt_tokens)
                if turn.think_s is not None:
                    seconds(turn.think_s, "a pause")
                    if not turn.session:
                        raise ValueError("think_s without a session")
                wanted = -(-turn.prompt_tokens // size)
                if turn.blocks and len(turn.blocks) != wanted:
                    raise ValueError(
                        f"{len(turn.blocks)} blocks; {turn.prompt_tokens} tokens are {wanted}"
                    )
                answer = answer_tokens(turn.answer_tokens)
            except MALFORMED as error:
                raise broken(path, number, str(error)) from error
            yield (
                turn
                if answer == turn.answer_tokens
                else msgspec.structs.replace(turn, answer_tokens=answer)
            )
