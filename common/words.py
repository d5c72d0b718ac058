"""Wording of messages: counts and lists."""

from collections.abc import Sequence


def counted(count: int, noun: str) -> str:
    """A count with its noun, in the singular or with an s: `1 shard`, `2 shards`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(words: Sequence[str], last: str = "or") -> str:
    """Words joined as `a, b or c`."""
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
