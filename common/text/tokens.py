"""The tokeniser, and detokenising one token at a time; imports no torch."""

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from sps2.common.errors import Invalid
from sps2.common.grammar import Grammars
from sps2.common.model.config import eos_ids
from sps2.common.models import require_tokenizer
from sps2.common.text import added
from sps2.common.text.chat_prompt import ChatPrompt, opening
from sps2.common.text.special_token_guard import Guard
from sps2.common.text.spelling import spelling
from sps2.common.text.template import NOTHING, ChatTemplate

_SLICE = 64 << 10
"""Characters that are tokenised at a time to check whether a text is too long."""


class Tokenizer:
    """The tokeniser of a model in a Hugging Face folder (tokenizer.json)."""

    def __init__(self, folder: Path) -> None:
        """Raises Invalid if a file is missing or broken, or the tokeniser is not supported."""
        path = require_tokenizer(folder)
        try:
            text = path.read_text(encoding="utf-8")
            table = json.loads(text)
            _require_prefixes(table["model"])
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
            self._spelling = spelling(table.get("decoder"))
        except Exception as error:  # the library raises bare Exception
            raise Invalid(f"{path} is not a usable tokeniser: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.folder = folder
        added.add(self._tokenizer, folder)
        self.special_tokens = added.special_tokens(folder)
        """The special tokens that the model's files name: `bos_token`, `eos_token` and so on."""
        tokens = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in tokens.items() if token.special)
        self._bytes: dict[int, bytes] = {}

    @cached_property
    def vocab_size(self) -> int:
        """The largest token id plus one; a model's embedding may have more rows, without text."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """All tokens that end generation according to the model's files."""
        files = [self.folder / "generation_config.json", self.folder / "config.json"]
        ids = [each for file in files for each in eos_ids(added.optional(file), file)]
        named = self._tokenizer.token_to_id(self.special_tokens.get("eos_token", ""))
        return tuple(dict.fromkeys([*ids, *([] if named is None else [named])]))

    @cached_property
    def bos_id(self) -> int | None:
        """The id of the token that begins a sequence, if the model has one."""
        return self._tokenizer.token_to_id(self.special_tokens.get("bos_token", ""))

    @cached_property
    def grammars(self) -> Grammars:
        """The grammars that answers can follow; takes a while at its first use, see there."""
        return Grammars(self._tokenizer.to_str(), self.eos_ids)

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        parse_special_tokens: bool = True,
        most: int | None = None,
    ) -> list[int]:
        """Tokenise a text. Other threads run meanwhile.

        Args:
            add_special_tokens: whether to add the model's tokens around a text, e.g. its BOS.
            parse_special_tokens: whether special tokens spelled out in `text` become one token.
            most: maximum of tokens. A text with far more is refused before it is tokenised
                completely; one with a few more is not refused here.

        Raises:
            Invalid: `text` has a lone surrogate, or is too long (`context_length_exceeded`).
        """
        tokenizer = self._tokenizer if parse_special_tokens else self._literal
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Invalid("the text is not valid Unicode: it has a lone surrogate") from error
        if most is not None:
            _refuse_long(text, most, tokenizer, "prompt")
        return _encode(tokenizer, text, add_special_tokens).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; unknown ids have none. Raises Invalid on an id out of range."""
        if ids and not 0 <= min(ids) <= max(ids) < 1 << 32:
            raise Invalid("token ids must be numbers of at least 0")
        batch = [list(ids)]  # the batch call lets other threads run
        return self._tokenizer.decode_batch(batch, skip_special_tokens=skip_special_tokens)[0]

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        most: int | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        continue_final_message: bool = False,
        variables: Mapping[str, Any] = NOTHING,
    ) -> list[int]:
        """Tokenise a conversation by the model's chat template.

        Special tokens spelled out in messages and tools are plain text: only the template's own
        begin or end a turn.

        Args:
            messages: one with a `Sampled` under the key `SAMPLED` (see `chat_prompt`) gets these
                tokens if the template shows all of it.
            most: as for `encode`.
            tools: functions that the model may call, in OpenAI's form. A template that does not
                use tools gets them as text; see `tool_turns`.
            continue_final_message: whether to end within the last message; then there is no
                generation prompt.
            variables: of the template, besides its special tokens.

        Raises:
            Invalid: the model has no chat template, it refuses the messages, or they are too long.
        """
        prompt = ChatPrompt(
            self.tool_template if tools else self.template,
            self._guard,
            messages,
            tools,
            variables,
            answering=add_generation_prompt and not continue_final_message,
            continuing=continue_final_message,
        )
        if most is not None:
            _refuse_long(prompt.text, most, self._tokenizer, "messages")
        ids: list[int] = []
        for text, literal, known in prompt.segments():
            ids += known or self.encode(text, False, parse_special_tokens=not literal)
        return ids

    def opening(self, with_tools: bool = False, variables: Mapping[str, Any] = NOTHING) -> str:
        """The text by which the chat template begins an answer; empty if it shows none."""
        template = self.tool_template if with_tools else self.template
        return opening(template, self._guard, variables)

    @cached_property
    def special(self) -> dict[str, int]:
        """Ids of the special tokens, by their texts."""
        spelled = {self._tokenizer.id_to_token(index): index for index in self.special_ids}
        return {text: index for text, index in spelled.items() if text}

    @cached_property
    def _guard(self) -> Guard:
        return Guard(self.special)

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's chat template. Raises Invalid if it has none."""
        return self._template("default")

    @cached_property
    def tool_template(self) -> ChatTemplate:
        """The template of conversations with tools, which a few models have besides."""
        return self._template("tool_use")

    def _template(self, name: str) -> ChatTemplate:
        file = self.folder / "chat_template.jinja"
        other = self.folder / "additional_chat_templates" / f"{name}.jinja"
        source: object
        if other.exists() or file.exists():
            path = other if other.exists() else file
            try:
                source = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise Invalid(f"{path} is no text in UTF-8: {error}", field="messages") from error
        else:
            source = added.optional(self.folder / added.TABLE).get("chat_template")
        if isinstance(source, list):
            named = [each for each in source if isinstance(each, dict)]
            sources = {each.get("name"): each.get("template") for each in named}
            source = sources.get(name) or sources.get("default")
        if not isinstance(source, str | None):
            raise Invalid(f"the model's chat template is no text: {source!r}", field="messages")
        if not source:
            raise Invalid(
                "the model has no chat template; use completions",
                "messages",
                "unsupported_parameter",
            )
        return ChatTemplate(source, self.special_tokens)

    def token_bytes(self, index: int) -> bytes:
        """The bytes that a token adds to the text, maybe a part of a character, maybe none."""
        known = self._bytes.get(index)
        if known is None:
            token = self._tokenizer.id_to_token(index) if index >= 0 else None
            known = self._bytes[index] = b"" if token is None else self._spelling.bytes_of(token)
        return known

    def token_text(self, index: int) -> str:
        """`token_bytes` as text, with incomplete characters replaced."""
        return self.token_bytes(index).decode(errors="replace")

    @property
    def strips_space(self) -> bool:
        """Whether the first space of a decoded text was added by the tokeniser (sentencepiece)."""
        return self._spelling.strips_space

    @cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        literal = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        literal.encode_special_tokens = True
        literal.no_truncation()
        literal.no_padding()
        return literal


class Detokenizer:
    """Decodes a growing sequence: `feed` returns what each token adds, in whole characters."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Iterable[int] = (),
        skip_special_tokens: bool = True,
        shown: Iterable[int] = (),
    ) -> None:
        """`prompt` is what the tokens continue; only whether it has text matters.

        Args:
            shown: special tokens that have their text all the same.
        """
        self._tokenizer = tokenizer
        skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._skipped = skipped.difference(shown)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        begun = any(index not in self._skipped for index in prompt)
        self._strip = tokenizer.strips_space and not begun

    def feed(self, index: int) -> str:
        """The text that token `index` completes; empty while a character is incomplete."""
        if index in self._skipped:
            return ""
        return self._emit(self._decoder.decode(self._tokenizer.token_bytes(index)))

    def flush(self) -> str:
        """The rest at the end: a replacement character for an incomplete one, or nothing."""
        return self._emit(self._decoder.decode(b"", final=True))

    def _emit(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


def _require_prefixes(model: Mapping[str, Any]) -> None:
    """Raise ValueError if the right part of a merge lacks the prefix that all such parts have.

    The library cuts off the prefix's length without a look, within a character too, and then ends
    the process.
    """
    prefix = model.get("continuing_subword_prefix")
    if not prefix or model.get("type", "BPE") != "BPE":
        return
    for merge in model.get("merges", ()):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not pair[-1].startswith(prefix):
            raise ValueError(f"the merge {merge!r} lacks the prefix {prefix!r}")


def _encode(
    tokenizer: tokenizers.Tokenizer, text: str, add_special_tokens: bool
) -> tokenizers.Encoding:
    """As `tokenizer.encode`, but other threads run meanwhile."""
    batch = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    return batch[0]


def _refuse_long(text: str, most: int, tokenizer: tokenizers.Tokenizer, field: str) -> None:
    """Raise Invalid if slices of `text` have over twice `most` tokens.

    A text has about as many tokens as its slices together: each cut adds a few at most.
    """
    size = max(_SLICE, 8 * most)
    if len(text) <= size:
        return
    tokens = 0
    for start in range(0, len(text), size):
        tokens += len(_encode(tokenizer, text[start : start + size], False))
        if tokens > 2 * most:
            raise Invalid(
                f"the prompt is too long: its first {min(start + size, len(text))} of {len(text)} "
                f"characters have over {2 * most} tokens; the most is {most}",
                field,
                "context_length_exceeded",
            )
