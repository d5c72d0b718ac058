"""Added tokens: those that a model's other files add to its tokenizer.json."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import tokenizers
from msgspec import Meta

from sps2.common.errors import Invalid
from sps2.common.model.config import read_json

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
TABLE, MAP, MORE = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"

_Text = Annotated[str, Meta(min_length=1)]

log = logging.getLogger(__name__)


class _Entry(msgspec.Struct, frozen=True):
    """An entry of `added_tokens_decoder`, or of a named special token."""

    content: _Text
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool | None = None

    def token(self) -> tokenizers.AddedToken:
        return tokenizers.AddedToken(
            self.content,
            single_word=self.single_word,
            lstrip=self.lstrip,
            rstrip=self.rstrip,
            normalized=not self.special if self.normalized is None else self.normalized,
            special=self.special,
        )


def optional(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file that may be absent. Raises Invalid, which names the file."""
    return read_json(path) if path.exists() else {}


def special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that the model's files name: `bos_token`, `eos_token` and so on.

    Raises:
        Invalid: a file is broken, or has an entry that is not a token; the message names both.
    """
    found: dict[str, str] = {}
    for file in (MAP, TABLE):  # the second is newer, and overrides
        given = optional(folder / file)
        for name in SPECIAL:
            if name in given:
                text = _text(folder / file, name, given[name])
                found[name] = text or found.get(name, "") if file == MAP else text
    return {name: text for name, text in found.items() if text}


def add(tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    """Add to `tokenizer` all tokens that the model's files add.

    A token whose id is not the next free one, or is beyond the model's embedding, is left out with
    a warning.

    Raises:
        Invalid: a file is broken, or has an entry that is not a token; the message names the file.
    """
    rows = optional(folder / "config.json").get("vocab_size")
    known = {
        token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()
    }
    free = max(tokenizer.get_vocab().values(), default=-1) + 1
    wanted = []
    for index, entry in sorted(_declared(folder), key=lambda each: each[0]):
        if tokenizer.token_to_id(entry.content) is None:
            if index != free or (isinstance(rows, int) and index >= rows):
                log.warning("%s: the added token %r cannot be %d", folder, entry.content, index)
                continue
            free += 1
        if known.get(entry.content) != entry.special:
            wanted.append(entry.token())
            known[entry.content] = entry.special
    named = [text for text in special_tokens(folder).values() if text not in known]
    wanted += [
        _Entry(text, special=True).token()
        for text in named
        if tokenizer.token_to_id(text) is not None
    ]
    tokenizer.add_tokens(wanted)


def _declared(folder: Path) -> Iterator[tuple[int, _Entry]]:
    table = folder / TABLE
    decoder = optional(table).get("added_tokens_decoder") or {}
    names = set(special_tokens(folder).values())
    try:
        if decoder:
            yield from msgspec.convert(decoder, dict[int, _Entry], strict=False).items()
            return
        more = msgspec.convert(optional(folder / MORE), dict[_Text, int])
    except msgspec.ValidationError as error:
        file = table if decoder else folder / MORE
        raise Invalid(f"{file} has added tokens that are none: {error}") from error
    for text, index in more.items():
        yield index, _Entry(text, special=text in names)


def _text(file: Path, name: str, given: object) -> str:
    text = given.get("content") if isinstance(given, dict) else given
    if not isinstance(text, str | None):
        raise Invalid(f"{file}: {name} is no token: {given!r}")
    return text or ""
