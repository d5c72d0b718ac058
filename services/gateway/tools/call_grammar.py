"""The grammar of answers that call functions, in the form of the model's family."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from sps2.common.errors import Invalid
from sps2.common.grammar import json_schema, lark
from sps2.services.gateway.tools.families import Written
from sps2.services.gateway.tools.thoughts import Tags

ANY = {"type": "object"}

Rule = Callable[[str, Mapping[str, Any], bool], str]
"""Makes the rule of a function's arguments of its name, its schema, and whether it is strict."""


class CallGrammar:
    """Writes grammars of one request.

    Args:
        functions: the JSON schema of each function's arguments, by name.
        strict: the functions whose schemas must be followed in every detail; in those of the
            others, what cannot be guaranteed is left out.
        special: ids of the special tokens, by their texts.
        several: whether an answer may have more calls than one.
    """

    def __init__(
        self,
        written: Written,
        functions: Mapping[str, Mapping[str, Any]],
        strict: set[str],
        special: Mapping[str, int],
        several: bool,
    ) -> None:
        self._written = written
        self._functions = functions
        self._strict = strict
        self._special = special
        self._several = several and written.between is not None

    def required(self, tags: Tags | None, is_open: bool) -> str:
        """At least one call, and nothing else but thoughts before.

        Args:
            tags: of the model's thoughts, if it thinks.
            is_open: whether the answer begins within thoughts.
        """
        return lark("\n".join([*_start("calls", tags, is_open), *self._all(tags, is_open)]))

    def with_answer(self, grammar: str, tags: Tags | None, is_open: bool) -> str:
        """An answer that follows another grammar, or calls if there are functions.

        Arguments are those of `required`, and a grammar of one part.
        """
        what = "(calls | answer)" if self._functions else "answer"
        rules = [*_start(what, tags, is_open), "answer: @answer", *self._all(tags, is_open)]
        (answer,) = msgspec.json.decode(grammar)["grammars"]
        (whole,) = msgspec.json.decode(lark("\n".join(rules)))["grammars"]
        parts = [{"name": "main", **whole}, {**answer, "name": "answer"}]
        return msgspec.json.encode({"grammars": parts}).decode()

    def strict_when_called(self, opener: str, tags: Tags | None, is_open: bool) -> str:
        """Any text; behind each `opener` a call follows, by the schemas of strict functions.

        Thoughts may have an `opener` of their own. Arguments are else those of `required`.
        """

        def arguments(name: str, schema: Mapping[str, Any], strict: bool) -> str:
            return json_of(name, schema if strict else ANY, strict)

        rules = [*self._thoughts(tags, is_open), *self._calls(opener, arguments)]
        unthought = ""
        if tags is not None and not is_open and tags.opening not in self._special:
            unthought = f" & ~/\\s*{_regex(tags.opening)}(.|\\n)*/"  # else it could be either
        if (index := self._special.get(opener)) is not None:
            start = _start(f"(text <[{index}]> calls)* text", tags, is_open)
            text = ["text: TEXT", f"TEXT: /(.|\\n)*/{unthought}"]
            return lark("\n".join([*start, *text, *rules]))
        mark = _regex(opener)
        text = [
            "head[lazy]: HEAD",
            f"HEAD: /(.|\\n)*{mark}/{unthought}",
            "tail: TAIL",
            f"TAIL: /(.|\\n)*/ & ~/(.|\\n)*{mark}(.|\\n)*/{unthought}",
        ]
        start = _start("(head calls)* tail", tags, is_open)
        return lark("\n".join([*start, *text, *rules]))

    def _all(self, tags: Tags | None, is_open: bool) -> list[str]:
        calls = self._calls("", json_of) if self._functions else []
        return [*self._thoughts(tags, is_open), *calls]

    def _calls(
        self, without: str, arguments: Callable[[str, Mapping[str, Any], bool], str]
    ) -> list[str]:
        """The rules of `calls`; `without` is what has been written of them."""
        written = self._written
        first, before = written.first, written.before
        if without and first.startswith(without):
            first = first.removeprefix(without)
        elif without:
            before, first = before.removeprefix(without), ""
        one = without and before != written.before
        calls = "call"
        if self._several and not one:
            calls = f"call ({self._literal(written.between or '')} call)*"
        numbers = range(len(self._functions))
        rules = [
            f"calls: {self._literal(first)} {calls} {self._literal(written.last)}",
            "call: " + " | ".join(f"call_{number}" for number in numbers),
        ]
        for number, (name, schema) in enumerate(self._functions.items()):
            quoted = json.dumps(name) if '"' in before else name
            begin = self._literal(before.replace("NAME", quoted))
            rules.append(f"call_{number}: {begin} args_{number} {self._literal(written.after)}")
            rules.append(f"args_{number}: {arguments(name, schema, name in self._strict)}")
        return rules

    def _thoughts(self, tags: Tags | None, is_open: bool) -> list[str]:
        if tags is None:
            return []
        closing = self._special.get(tags.closing)
        if closing is not None:
            think = [f"think: /(.|\\n)*/ <[{closing}]>"]
        else:
            think = [f"think[lazy]: /(.|\\n)*{_regex(tags.closing)}/"]
        opening = "" if is_open else self._literal(tags.opening)
        return [f"thoughts: {opening} think /\\s*/", *think]

    def _literal(self, text: str) -> str:
        """A text in Lark; special tokens in it by their ids."""
        if not text:
            return ""
        known = sorted((each for each in self._special if each in text), key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, known))})", text) if known else [text]
        return " ".join(
            f"<[{self._special[part]}]>" if part in self._special else json.dumps(part)
            for part in parts
            if part
        )


def _start(what: str, tags: Tags | None, is_open: bool) -> list[str]:
    if tags is None:
        return [f"start: {what}"]
    return [f"start: thoughts {what}" if is_open else f"start: thoughts? {what}"]


def json_of(name: str, schema: Mapping[str, Any], strict: bool) -> str:
    """The rule of a function's arguments.

    Raises:
        Invalid: the schema is not that of an object, or cannot be followed.
    """
    if schema.get("type", "object") != "object":
        raise Invalid(f"the parameters of `{name}` are not those of an object")
    text = json_schema({**schema, "type": "object"}, lenient=not strict)
    return f"%json {json.dumps(msgspec.json.decode(text)['grammars'][0]['json_schema'])}"


def _regex(text: str) -> str:
    return re.escape(text).replace("/", "\\/")
