"""Hashes of KV pages: pages with the same hash are interchangeable, whoever computed them.

A hash covers the model, the tokens, and the attention setting: KV that was computed by `fast` never
serves an `exact` request. KV of one hash is equal up to rounding; for `balanced` and `fast`, up to
what these leave out, which depends on how the prompt was split.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

HASH_BYTES = 16


class PromptHashes(NamedTuple):
    """The hashes of a prompt's full pages, and `root`, the first one's parent; empty: no cache."""

    root: bytes = b""
    hashes: tuple[bytes, ...] = ()

    @property
    def last(self) -> bytes:
        """The parent hash of the next page."""
        return self.hashes[-1] if self.hashes else self.root


def root(*settings: str) -> bytes:
    """The parent hash of the first page: of everything but the tokens that KV depends on."""
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    for setting in settings:
        text = setting.encode()
        digest.update(len(text).to_bytes(4, "little") + text)
    return digest.digest()


def page_hashes(parent: bytes, tokens: bytes, page_tokens: int) -> tuple[bytes, ...]:
    """The hashes of the full pages of `tokens`, each of its tokens and the previous hash.

    Args:
        parent: the hash of the previous page; for the first, `root`.
        tokens: ids, little-endian int32.
    """
    size = 4 * page_tokens
    hashes = []
    for start in range(0, len(tokens) - size + 1, size):
        digest = hashlib.blake2b(parent, digest_size=HASH_BYTES)
        digest.update(tokens[start : start + size])
        parent = digest.digest()
        hashes.append(parent)
    return tuple(hashes)


def common_pages(a: Sequence[bytes], b: Sequence[bytes]) -> int:
    """How many pages two prompts share, by the hashes of their pages from the first on."""
    least, most = 0, min(len(a), len(b))
    while least < most:  # hashes are equal only if all before them are
        middle = (least + most + 1) // 2
        if a[middle - 1] == b[middle - 1]:
            least = middle
        else:
            most = middle - 1
    return least
