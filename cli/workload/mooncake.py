"""Mooncake's traces: JSON lines with times, lengths, and the hashes of 512-token blocks."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from sps2.cli.workload.requests import Turn
from sps2.cli.workload.rows import answer_tokens, broken, lines, prompt_tokens, seconds
from sps2.common.validation import MALFORMED

BLOCK_TOKENS = 512


class _Row(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def read_mooncake(path: Path) -> Iterator[Turn]:
    """The requests of a trace of github.com/kvcache-ai/Mooncake, in the order of its rows."""
    decode = msgspec.json.Decoder(_Row).decode
    with closing(lines(path)) as rows:
        for number, line in enumerate(rows, 1):
            if line.isspace():
                continue
            try:
                row = decode(line)
                turn = Turn(
                    seconds(row.timestamp / 1000, "a time"),
                    prompt_tokens(row.input_length),
                    answer_tokens(row.output_length),
                    row.hash_ids,
                )
            except MALFORMED as error:
                raise broken(path, number, str(error)) from error
            wanted = -(-turn.prompt_tokens // BLOCK_TOKENS)
            if turn.blocks and len(turn.blocks) != wanted:
                raise broken(
                    path,
                    number,
                    f"{len(turn.blocks)} hash_ids; {turn.prompt_tokens} tokens are {wanted} blocks",
                )
            yield turn
