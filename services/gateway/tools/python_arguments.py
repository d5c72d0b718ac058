"""The grammar of a call's arguments as Python writes them: `city="Oslo", days=3`."""

import json
import keyword
import re
from collections.abc import Mapping
from typing import Any

from sps2.common.grammar.sources import WHITESPACE
from sps2.services.gateway.tools.lark_parts import json_rule

COMMA = f"/({WHITESPACE})?,({WHITESPACE})?/"
EQUALS = "[ ]?=[ ]?"
_ESCAPED = (
    r"\\[\"'\\nrt]|\\u([0-9a-ce-fA-CE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2})"  # no surrogates
)
SHARED = [
    f"python_pairs: (python_pair ({COMMA} python_pair)*)?",
    f"python_pair: /[A-Za-z_][A-Za-z0-9_]*{EQUALS}/ python_value",
    "python_value: python_string | python_word | python_list | python_dict"
    r" | /-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,16})?/",
    f"python_string: /\"([^\"\\\\\\x00-\\x1f]|{_ESCAPED})*\"|'([^'\\\\\\x00-\\x1f]|{_ESCAPED})*'/",
    "python_word: python_bool | python_null",
    'python_bool: "True" | "False" | "true" | "false"',
    'python_null: "None" | "null"',
    f'python_list: "[" (python_value ({COMMA} python_value)*)? "]"',
    f'python_dict: "{{" (python_member ({COMMA} python_member)*)? "}}"',
    "python_member: python_string /[ ]?:[ ]?/ python_value",
]
"""Rules of arguments of any names and values."""
_PLAIN = {"type", "title", "description", "default", "examples"}
"""Keywords of a schema that says no more than a type."""
_PARTS = {"$defs", "definitions"}
_KNOWN = {"type", "properties", "required", "additionalProperties", "title", "description"}
_KNOWN |= {"$schema", *_PARTS}


def python_arguments(rule: str, schema: Mapping[str, Any]) -> list[str]:
    """The rules of the arguments of a strict function, of which the first is `rule`.

    Properties come in the order of the schema, and there are no others.

    Returns:
        No rules if Python's form does not suit the schema.

    Raises:
        Invalid: a value's schema cannot be followed.
    """
    if not _suits(schema):
        return []
    required = set(schema.get("required") or ())
    properties = schema.get("properties") or {}
    parts = {name: schema[name] for name in _PARTS if name in schema}
    rules = [f"{rule}: {rule}_first_0"]
    for number, (name, value) in enumerate(properties.items()):
        here, after = f"{rule}_value_{number}", f"{rule}_more_{number + 1}"
        others = "" if name in required else f" | {rule}_first_{number + 1}"
        optional = "" if name in required else "?"
        rules += [
            f"{rule}_first_{number}: {here} {after}{others}",
            f"{rule}_more_{number}: ({COMMA} {here}){optional} {after}",
            f"{here}: /{name}{EQUALS}/ {rule}_json_{number}",
            f"{rule}_json_{number}: {_value(value, parts)}",
        ]
    end = len(properties)
    return [*rules, f'{rule}_first_{end}: ""', f'{rule}_more_{end}: ""']


def _suits(schema: Mapping[str, Any]) -> bool:
    properties = schema.get("properties") or {}
    names = all(name.isidentifier() and name.isascii() for name in properties)
    values = all(isinstance(value, dict) for value in properties.values())
    if not names or not values or any(map(keyword.iskeyword, properties)):
        return False
    if not _KNOWN.issuperset(schema) or not set(schema.get("required") or ()) <= set(properties):
        return False
    known = tuple(f"#/{part}/" for part in _PARTS)
    return all(each.startswith(known) for each in _references(schema))


def _value(schema: dict[str, Any], parts: Mapping[str, Any]) -> str:
    """The rule of a value. JSON is Python's too, but for words, and quotes may be others.

    Args:
        parts: those of the whole schema, to which this one may refer.
    """
    if _PLAIN.issuperset(schema):
        match schema.get("type"):
            case "string":
                return "python_string"
            case "boolean":
                return "python_bool"
            case "null":
                return "python_null"
    return json_rule({**schema, **parts} if _references(schema) else schema)


def _references(schema: Mapping[str, Any]) -> list[str]:
    return re.findall(r'"\$ref": "([^"]*)"', json.dumps(schema))
