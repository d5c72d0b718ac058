"""The grammar of answers that call functions, in the form of the model's family."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from sps2.common.grammar import lark
from sps2.services.gateway.tools.families import Written
from sps2.services.gateway.tools.lark_parts import (
    ANYTHING,
    json_of,
    literal,
    no_thoughts,
    regex_of,
    start,
    thoughts,
)
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
        self._literal = partial(literal, special=special)
        self._several = several and written.between is not None

    def required(self, tags: Tags | None, is_open: bool) -> str:
        """At least one call, and nothing else but thoughts before.

        Args:
            tags: of the model's thoughts, if it thinks.
            is_open: whether the answer begins within thoughts.
        """
        return lark("\n".join([start("calls", tags, is_open), *self._all(tags, is_open)]))

    def with_answer(self, grammar: str, tags: Tags | None, is_open: bool) -> str:
        """An answer that follows another grammar, or calls if there are functions.

        Arguments are those of `required`, and a grammar of one part.
        """
        what = "(calls | answer)" if self._functions else "answer"
        rules = [start(what, tags, is_open), "answer: @answer", *self._all(tags, is_open)]
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

        rules = [*thoughts(tags, is_open, self._special), *self._calls(opener, arguments)]
        unthought = no_thoughts(tags, is_open, self._special)
        if (index := self._special.get(opener)) is not None:
            what = f"(text <[{index}]> calls)* text"
            text = ["text: TEXT", f"TEXT: /{ANYTHING}/{unthought}"]
        else:
            what, mark = "(head calls)* tail", regex_of(opener)
            text = [
                "head[lazy]: HEAD",
                f"HEAD: /{ANYTHING}{mark}/{unthought}",
                "tail: TAIL",
                f"TAIL: /{ANYTHING}/ & ~/{ANYTHING}{mark}{ANYTHING}/{unthought}",
            ]
        return lark("\n".join([start(what, tags, is_open), *text, *rules]))

    def _all(self, tags: Tags | None, is_open: bool) -> list[str]:
        calls = self._calls("", json_of) if self._functions else []
        return [*thoughts(tags, is_open, self._special), *calls]

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
