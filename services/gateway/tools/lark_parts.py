"""Parts of grammars in Lark that those of calls share."""

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from sps2.common.errors import Invalid
from sps2.common.grammar import json_schema
from sps2.services.gateway.tools.thoughts import Tags

ANYTHING = "(.|\\n)*"
"""A regular expression of any text."""


def literal(text: str, special: Mapping[str, int]) -> str:
    """A text; special tokens in it by their ids.

    Args:
        special: ids of the special tokens, by their texts.
    """
    if not text:
        return ""
    known = sorted((each for each in special if each in text), key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, known))})", text) if known else [text]
    return " ".join(
        f"<[{special[part]}]>" if part in special else json.dumps(part) for part in parts if part
    )


def start(what: str, tags: Tags | None, is_open: bool) -> str:
    """The first rule: `what`, behind thoughts if there are any.

    Args:
        tags: of the model's thoughts, if it thinks.
        is_open: whether the answer begins within thoughts.
    """
    if tags is None:
        return f"start: {what}"
    return f"start: thoughts {what}" if is_open else f"start: thoughts? {what}"


def thoughts(tags: Tags | None, is_open: bool, special: Mapping[str, int]) -> list[str]:
    """The rule `thoughts`; see `start`."""
    if tags is None:
        return []
    closing = special.get(tags.closing)
    if closing is not None:
        think = [f"think: /{ANYTHING}/ <[{closing}]>"]
    else:
        think = [f"think[lazy]: /{ANYTHING}{regex_of(tags.closing)}/"]
    opening = "" if is_open else literal(tags.opening, special)
    return [f"thoughts: {opening} think /\\s*/", *think]


def no_thoughts(tags: Tags | None, is_open: bool, special: Mapping[str, int]) -> str:
    """What keeps a terminal of text from matching thoughts, too; see `start`."""
    if tags is None or is_open or tags.opening in special:
        return ""
    return f" & ~/\\s*{regex_of(tags.opening)}{ANYTHING}/"


def json_of(name: str, schema: Mapping[str, Any], strict: bool) -> str:
    """The rule of a function's arguments.

    Raises:
        Invalid: the schema is not that of an object, or cannot be followed.
    """
    if schema.get("type", "object") != "object":
        raise Invalid(f"the parameters of `{name}` are not those of an object")
    return json_rule({**schema, "type": "object"}, lenient=not strict)


def json_rule(schema: dict[str, Any], lenient: bool = False) -> str:
    """The rule of a JSON value. Raises Invalid if the schema cannot be followed."""
    text = json_schema(schema, lenient=lenient)
    return f"%json {json.dumps(msgspec.json.decode(text)['grammars'][0]['json_schema'])}"


def regex_of(text: str) -> str:
    """A regular expression of a text, as it stands between slashes."""
    return re.escape(text).replace("/", "\\/")
