"""Text to tokens and back, one token at a time; imports no torch."""

import codecs
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from sps2.common.chat_template import ChatTemplate
from sps2.common.errors import Invalid
from sps2.common.literal import Guard, stretches
from sps2.common.model.config import eos_ids, read_json
from sps2.common.models import require_tokenizer

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """The tokeniser of a model in a Hugging Face folder (tokenizer.json)."""

    def __init__(self, folder: Path) -> None:
        """Raises Invalid if a file is missing or broken."""
        path = require_tokenizer(folder)
        try:
            self._text = path.read_text()
            self._tokenizer = tokenizers.Tokenizer.from_str(self._text)
        except Exception as error:  # the library raises bare Exception
            raise Invalid(f"{path} is not a usable tokeniser: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.folder = folder
        self._settings = _optional(folder / "tokenizer_config.json")
        self._spelling = _spelling(json.loads(self._text).get("decoder"))
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self._bytes: dict[int, bytes] = {}

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest token id; a model may have rows beyond, without a text."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """`bos_token`, `eos_token` and so on, as far as tokenizer_config.json names them."""
        found = {name: self._settings.get(name) for name in _SPECIAL}
        texts = {name: t["content"] if isinstance(t, dict) else t for name, t in found.items()}
        return {name: text for name, text in texts.items() if text}

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Every token that ends generation, by any of the model's configuration files."""
        ids = [
            *eos_ids(_optional(self.folder / "generation_config.json")),
            *eos_ids(_optional(self.folder / "config.json")),
        ]
        named = self._tokenizer.token_to_id(self.special_tokens.get("eos_token", ""))
        return tuple(dict.fromkeys([*ids, *([] if named is None else [named])]))

    @cached_property
    def bos_id(self) -> int | None:
        """The token that begins a sequence, if the model has one."""
        return self._tokenizer.token_to_id(self.special_tokens.get("bos_token", ""))

    def encode(
        self, text: str, add_special_tokens: bool = True, parse_special_tokens: bool = True
    ) -> list[int]:
        """Token ids of a text.

        Args:
            add_special_tokens: whether to add what the model puts around a text, such as its BOS.
            parse_special_tokens: whether special tokens spelled out in `text` become one token.

        Raises:
            Invalid: `text` has a lone surrogate.
        """
        tokenizer = self._tokenizer if parse_special_tokens else self._literal
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Invalid("the text is not valid Unicode: it has a lone surrogate") from error
        return tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids without a text give none. Raises Invalid on a negative id."""
        if ids and not 0 <= min(ids) <= max(ids) < 1 << 32:
            raise Invalid("token ids must be numbers of at least 0")
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation, by the model's chat template.

        Special tokens spelled out in a content are text: only the template's own begin or end a
        turn.

        Raises:
            Invalid: the model has no chat template, or it refuses the messages.
        """
        guarded = [
            {**message, "content": self._guard.guarded(message["content"])} for message in messages
        ]
        text = self.template.render(guarded, add_generation_prompt, **variables)
        if guarded == list(messages):
            return self.encode(text, add_special_tokens=False)
        ids: list[int] = []
        for stretch in stretches(text):
            ids += self.encode(stretch.text, False, parse_special_tokens=not stretch.literal)
        return ids

    @cached_property
    def special(self) -> dict[str, int]:
        """Ids of the special tokens, by how they are spelled."""
        spelled = {self._tokenizer.id_to_token(index): index for index in self.special_ids}
        return {text: index for text, index in spelled.items() if text}

    @cached_property
    def _guard(self) -> Guard:
        return Guard(self.special)

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's chat template. Raises Invalid if it has none."""
        file = self.folder / "chat_template.jinja"
        source = file.read_text() if file.exists() else self._settings.get("chat_template")
        if isinstance(source, list):
            named = {entry["name"]: entry["template"] for entry in source}
            source = named.get("default")
        if not source:
            raise Invalid("the model has no chat template; use completions", field="messages")
        return ChatTemplate(source, self.special_tokens)

    def token_bytes(self, index: int) -> bytes:
        """What a token adds to the text: maybe a part of a character. Empty if it has no text."""
        known = self._bytes.get(index)
        if known is None:
            token = self._tokenizer.id_to_token(index) if index >= 0 else None
            known = self._bytes[index] = b"" if token is None else self._spelling(token)
        return known

    def token_text(self, index: int) -> str:
        """`token_bytes` as text, for people: broken characters are replaced."""
        return self.token_bytes(index).decode(errors="replace")

    @cached_property
    def strips_space(self) -> bool:
        """Whether the first space of a text is the tokeniser's, not the text's (sentencepiece)."""
        decoder = json.loads(self._text).get("decoder") or {}
        steps = [decoder, *decoder.get("decoders", [])]
        return any(
            (step["type"] == "Strip" and step.get("start") == 1)
            or (step["type"] == "Metaspace" and step.get("prepend_scheme") != "never")
            for step in steps
        )

    @cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        literal = tokenizers.Tokenizer.from_str(self._text)
        literal.encode_special_tokens = True
        literal.no_truncation()
        literal.no_padding()
        return literal


class Detokenizer:
    """The text of one growing sequence: feed ids, get what each adds; never half a character."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: Iterable[int] = (), skip_special_tokens: bool = True
    ) -> None:
        """`prompt` is what the tokens continue; only whether it has any text matters."""
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        begun = any(index not in self._skipped for index in prompt)
        self._strip = tokenizer.strips_space and not begun

    def feed(self, index: int) -> str:
        """The text that token `index` completes; empty while a character is incomplete."""
        if index in self._skipped:
            return ""
        return self._emit(self._decoder.decode(self._tokenizer.token_bytes(index)))

    def flush(self) -> str:
        """What is left at the end: a replacement character for an incomplete one, or nothing."""
        return self._emit(self._decoder.decode(b"", final=True))

    def _emit(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


def _spelling(decoder: dict[str, Any] | None) -> Callable[[str], bytes]:
    """How tokens spell bytes: in the byte-level alphabet, or as sentencepiece with <0xXX>."""
    if decoder is not None and decoder["type"] == "ByteLevel":
        return _byte_level
    return _sentencepiece


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_ALPHABET[character] for character in token)
    except KeyError:  # an added token, spelled as in text
        return token.encode()


def _sentencepiece(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def _alphabet() -> dict[str, int]:
    """Printable bytes stand for themselves, the others for characters from U+0100 on (GPT-2)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_ALPHABET = _alphabet()


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
