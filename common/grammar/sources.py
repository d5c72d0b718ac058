"""Writes grammars: of JSON, of a schema, of a regular expression, of a choice, and in Lark."""

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from sps2.common.errors import Invalid
from sps2.common.grammar.closing import closed
from sps2.common.grammar.endless import has_an_end

WHITESPACE = r"\x20|\r?\n[\x20\t]{0,32}"
"""Between the parts of JSON, where there may be any: a space, or a new line and its indentation.
With more freedom, small models go on with spaces and empty lines for ever."""


def json_object() -> str:
    """The grammar of any JSON object."""
    return json_schema({"type": "object"})


def json_schema(
    schema: dict[str, Any], whitespace: str | None = WHITESPACE, lenient: bool = False
) -> str:
    """The grammar of the JSON that a schema allows; see `closed` for properties that it omits.

    Args:
        whitespace: a regular expression of what may be between the parts; None allows nothing.
        lenient: leave out keywords that cannot be guaranteed, rather than refuse them.

    Raises:
        Invalid: every answer would be endless, or the schema is nested too deeply.
    """
    options: dict[str, Any] = {"whitespace_flexible": whitespace is not None, "lenient": lenient}
    if whitespace is not None:
        options["whitespace_pattern"] = whitespace
    try:
        text = _grammar(json_schema={**closed(schema), "x-guidance": options})
        if not has_an_end(schema):
            raise Invalid("every answer would be endless: the schema requires itself again")
    except RecursionError as error:
        raise Invalid("the schema is nested too deeply") from error
    return text


def regex(pattern: str) -> str:
    """The grammar of the texts that a regular expression matches as a whole.

    The syntax is that of Rust's `regex`: there is no look-around and no back-reference.
    """
    from llguidance import regex_to_lark

    return lark(f"start: /{regex_to_lark(pattern, use_ascii='')}/")


def choice(options: Sequence[str]) -> str:
    """The grammar of these texts. Raises Invalid if there are none."""
    if not options:
        raise Invalid("there is nothing to choose from")
    return lark("start: " + " | ".join(json.dumps(option) for option in options))


def lark(text: str) -> str:
    """A grammar in llguidance's dialect of Lark, whose first rule is `start`.

    Raises:
        Invalid: the text is in another notation (GBNF, EBNF).
    """
    if re.search(r"^\s*[\w-]+\s*::=", text, re.MULTILINE):
        raise Invalid(
            "`::=` is of GBNF or EBNF; write rules as in Lark: `start: ...`, with `name: ...` for "
            "others"
        )
    return _grammar(lark_grammar=text)


def _grammar(**content: Any) -> str:
    return msgspec.json.encode({"grammars": [content]}).decode()
