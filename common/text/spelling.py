"""Decodes tokens one at a time, as the decoder of a tokenizer.json does for whole sequences."""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sps2.common.errors import Invalid

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"
"""Sentencepiece's space."""


class Spelling(NamedTuple):
    """How the tokens of a tokeniser spell text."""

    bytes_of: Callable[[str], bytes]
    """The bytes that a token adds to the text."""
    strips_space: bool
    """Whether the first space of a decoded text was added by the tokeniser."""


def spelling(decoder: dict[str, Any] | None) -> Spelling:
    """The spelling of a tokeniser with this decoder.

    Raises:
        Invalid: the decoder is not known, or cannot be applied token by token.
    """
    if decoder is None:
        return Spelling(lambda token: f" {token}".encode(), True)  # words
    steps = list(_steps(decoder))
    kinds = [step["type"] for step in steps]
    strips = sum(map(_strips, steps))
    of_tokens = kinds[: kinds.index("Fuse")] if "Fuse" in kinds else kinds
    of_text = set(kinds[len(of_tokens) :])
    if strips <= 1:
        if kinds[:1] == ["ByteLevel"] and set(kinds[1:]) <= {"Fuse", "Strip"}:
            return Spelling(_byte_level, bool(strips))
        spaces = {"Replace", "Metaspace"}
        if {*of_tokens} <= {*spaces, "ByteFallback"} and of_text <= {*spaces, "Fuse", "Strip"}:
            replaces, fallback = bool(spaces & {*kinds}), "ByteFallback" in kinds
            return Spelling(_sentencepiece(replaces, fallback), bool(strips))
    raise Invalid(f"its decoder ({', '.join(kinds)}) is not supported")


def _steps(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The decoders of a sequence in order, each checked to be supported. Raises Invalid."""
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
        return
    known: dict[str, dict[str, object]] = {
        "Replace": {"pattern": {"String": _SPACE}, "content": " "},
        "Metaspace": {"replacement": _SPACE},
        "Strip": {"content": " ", "stop": 0},
    }
    for key, value in known.get(decoder["type"], {}).items():
        if decoder.get(key) != value:
            raise Invalid(
                f"its decoder ({decoder['type']} with {key} {decoder.get(key)!r}) is not supported"
            )
    if decoder.get("start", 0) > 1:
        raise Invalid(f"its decoder, which strips {decoder['start']} spaces, is not supported")
    yield decoder


def _strips(step: dict[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return step.get("prepend_scheme") != "never"
    return step["type"] == "Strip" and step.get("start") == 1


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_ALPHABET[character] for character in token)
    except KeyError:  # an added token, spelled as in text
        return token.encode()


def _sentencepiece(spaces: bool, fallback: bool) -> Callable[[str], bytes]:
    def bytes_of(token: str) -> bytes:
        byte = _BYTE.fullmatch(token) if fallback else None
        if byte:
            return bytes([int(byte[1], 16)])
        return (token.replace(_SPACE, " ") if spaces else token).encode()

    return bytes_of


def _alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes are themselves, others are characters from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_ALPHABET = _alphabet()
