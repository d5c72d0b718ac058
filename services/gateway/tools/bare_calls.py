"""The grammar of answers that may be calls where no mark begins them: text, unless it is a call.

A call is recognised by its own beginning, up to the function's name. Text that begins so is left
out, so that what goes on is the call.
"""

from collections.abc import Mapping
from typing import Any

from sps2.common.grammar import lark
from sps2.common.grammar.sources import WHITESPACE
from sps2.services.gateway.tools.calls import Form
from sps2.services.gateway.tools.lark_parts import (
    ANYTHING,
    json_of,
    no_thoughts,
    regex_of,
    start,
    thoughts,
)
from sps2.services.gateway.tools.python_arguments import SHARED, python_arguments
from sps2.services.gateway.tools.thoughts import Tags

ANY = {"type": "object"}
SPACES = "[ \\t\\r\\n]*"
GAP = f"({WHITESPACE})?"
ARGUMENTS = '"(arguments|parameters)"'
_KIND = f'("type"{SPACES}:{SPACES}"function"{SPACES},{SPACES})?'
TERMINALS = [
    f'BEGIN: /{SPACES}\\{{{SPACES}{_KIND}"name"{SPACES}:{SPACES}"/',
    f'NAMED: /"{GAP},{GAP}{ARGUMENTS}{GAP}:{GAP}/',
    f"ENDED: /{GAP}\\}}/",
    f"LIST: /{SPACES}\\[/",
]
"""Parts of a call that is an object: before and behind its name, and at its end; and of a list."""


class BareCalls:
    """Writes the grammar of one request; see `CallGrammar`."""

    def __init__(
        self,
        form: Form,
        functions: Mapping[str, Mapping[str, Any]],
        strict: set[str],
        special: Mapping[str, int],
        several: bool,
    ) -> None:
        self._form = form
        self._schemas = functions
        self._strict = strict
        self._special = special
        self._several = several

    def grammar(self, tags: Tags | None, is_open: bool) -> str:
        """Any text, or calls by the schemas of strict functions.

        Args:
            tags: of the model's thoughts, if it thinks.
            is_open: whether the answer begins within thoughts.
        """
        opener = next(iter(self._form.openers), "")
        index = self._special.get(opener)
        unlike = f" & ~/{self._calls_begin()}/{no_thoughts(tags, is_open, self._special)}"
        if opener and index is None:  # not a token of the model: it does not write it
            unlike += f" & ~/{ANYTHING}{regex_of(opener)}{ANYTHING}/"
        what = "(text | bare)" if index is None else f"((text <[{index}]> opened)* text | bare)"
        rules = [start(what, tags, is_open), *thoughts(tags, is_open, self._special)]
        rules += ["text: TEXT", f"TEXT: /{ANYTHING}/{unlike}"]
        return lark("\n".join([*rules, *self._calls(with_opener=index is not None)]))

    def _calls_begin(self) -> str:
        """A regular expression of texts that begin as a call of one of the functions does.

        The name may come after other members, in which case nothing but its last quote shows what
        the object is; arguments that come before it are not even begun.
        """
        names = "|".join(self._schemas)
        begin = SPACES + (f"{self._form.separator}?{SPACES}" if self._form.separator else "")
        begin += f"(\\[{SPACES})?" if self._form.lists else ""
        named = f'{ANYTHING}"name"{SPACES}:{SPACES}"({names})"'
        found = [f"{begin}\\{{({named}|{SPACES}{ARGUMENTS}){ANYTHING}"]
        if self._form.python:
            found.append(f"{SPACES}\\[{SPACES}({names})\\({ANYTHING}")
        return "|".join(found)

    def _calls(self, with_opener: bool) -> list[str]:
        """The rules `bare`, calls that begin an answer, and `opened`, those behind an opener."""
        form, python = self._form, self._python()
        more = form.separator and self._several
        bare = [f"one (/{GAP}{form.separator}{GAP}/ one)*" if more else "one"]
        rules = [*TERMINALS, *self._arguments(), self._either("one", "ONE")]
        for number, name in enumerate(self._schemas):
            rules.append(f'ONE_{number}: BEGIN "{name}" NAMED')
        if form.lists:
            bare.append("list")
            rules += self._list(bool(python))
        if python:
            rules += [*python, *SHARED]
        rules.append(f"bare: {' | '.join(bare)}")
        if with_opener:
            rules.append(f"opened: {' | '.join([*bare, *['python'] * bool(python)])}")
        return rules

    def _list(self, python: bool) -> list[str]:
        """The rules of a list of calls, whose first is matched together with the bracket."""
        first, item = ("(first | first_python)", "(one | python)") if python else ("first", "one")
        items = f"(/{GAP},{GAP}/ {item})*" if self._several else ""
        begins = [f"FIRST_{number}: LIST ONE_{number}" for number in range(len(self._schemas))]
        return [f"list: {first} {items} /{GAP}\\]/", self._either("first", "FIRST"), *begins]

    def _either(self, rule: str, terminal: str) -> str:
        """A rule of a call of any function as an object.

        The terminal by which one begins is matched beside that of text, until one cannot go on.
        """
        calls = (
            f"{terminal}_{number} {self._arguments_of(number)} ENDED"
            for number in range(len(self._schemas))
        )
        return f"{rule}: {' | '.join(calls)}"

    def _arguments_of(self, number: int) -> str:
        return f"args_{number}" if [*self._schemas][number] in self._strict else "args"

    def _arguments(self) -> list[str]:
        """The rules of arguments as objects: any, and those of strict functions."""
        return [
            f"args: {json_of('', ANY, False)}",
            *(
                f"args_{number}: {json_of(name, schema, True)}"
                for number, (name, schema) in enumerate(self._schemas.items())
                if name in self._strict
            ),
        ]

    def _python(self) -> list[str]:
        """The rules of calls as Python writes them; none if no function suits that."""
        if not self._form.python:
            return []
        rules, calls = [], []
        for number, (name, schema) in enumerate(self._schemas.items()):
            if name not in self._strict:
                arguments = "python_pairs"
            elif made := python_arguments(f"python_{number}", schema):
                arguments = f"python_{number}"
                rules += made
            else:
                continue
            calls.append(f'PYTHON_{number} {arguments} ")"')
            rules.append(f'PYTHON_{number}: /{SPACES}/ "{name}("')
            rules.append(f"FIRST_PYTHON_{number}: LIST PYTHON_{number}")
        if not calls:
            return []
        firsts = [f"FIRST_{each}" for each in calls]
        return [f"python: {' | '.join(calls)}", f"first_python: {' | '.join(firsts)}", *rules]
