"""Words of messages."""

from collections.abc import Sequence


def counted(count: int, noun: str) -> str:
    """`1 shard`, `2 shards`: a count with its noun, which takes an s in the plural."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(words: Sequence[str], last: str = "or") -> str:
    """`a, b or c`."""
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
