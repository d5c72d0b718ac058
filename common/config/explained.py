"""Explains what is wrong in a configuration file, and what would be right."""

import difflib
import re
from collections.abc import Sequence

import msgspec
from msgspec.inspect import (
    Field,
    FloatType,
    LiteralType,
    Metadata,
    StructType,
    Type,
    UnionType,
    VarTupleType,
)

from sps2.common.validation import in_words


def explained(error: msgspec.ValidationError, kind: type[msgspec.Struct]) -> str:
    """Describe a validation error of tables that should be a `kind`, with the valid choices.

    Keys are named from the top of the file, for example `sharing.method`.
    """
    what, _, place = str(error).partition(" - at ")
    names = re.findall(r"\.(\w+)", place)
    where = ".".join(names)
    if unknown := re.search(r"unknown field `(.+?)`", what):
        full = ".".join([*names, unknown[1]])
        keys = [field.encode_name for field in _fields(_at(kind, names))]
        if elsewhere := _tables_with(kind, unknown[1]):
            return f"there is no key `{full}`; did you mean {' or '.join(elsewhere)}?"
        return f"there is no key `{full}`{_instead(unknown[1], keys)}"
    if bad := re.fullmatch(r"Invalid enum value (.+)", what):
        value, choices = bad[1].strip("'"), _choices(_at(kind, names))
        return f"`{where}` cannot be {bad[1]}{_instead(value, choices)}"
    if not where:
        return what
    said = in_words(what, _form(kind, names))
    return f"`{where}` {said}" if said != what else f"`{where}`: {what}"


def _choices(kind: Type) -> list[str]:
    """The texts that a key may have, and in words what else."""
    if isinstance(kind, UnionType):
        return [choice for each in kind.types for choice in _choices(_bare(each))]
    if isinstance(kind, FloatType):
        return ["a number"]
    return list(map(str, kind.values)) if isinstance(kind, LiteralType) else []


def _instead(word: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, choices, 1)
    there = f"; there are {', '.join(choices)}" if choices else ""
    return f"; did you mean {near[0]}?" if near else there


def _tables_with(kind: type[msgspec.Struct], key: str) -> list[str]:
    """The full names of all keys called `key`."""
    top = _fields(_at(kind, ()))
    places = {f"{field.encode_name}.{key}": _fields(_bare(field.type)) for field in top}
    places[key] = top
    return [
        place for place, fields in places.items() if key in {field.encode_name for field in fields}
    ]


def _at(kind: type[msgspec.Struct], names: Sequence[str]) -> Type:
    """The type of the value at these nested keys."""
    found: Type = msgspec.inspect.type_info(kind)
    for name in names:
        fields = {field.encode_name: field for field in _fields(found)}
        if name not in fields:
            break
        found = _bare(fields[name].type)
    return found


def _form(kind: type[msgspec.Struct], names: Sequence[str]) -> str:
    """The required form of the text at these nested keys, in words; empty if its type has none."""
    for field in _fields(_at(kind, names[:-1])):
        if field.encode_name == names[-1] and isinstance(field.type, Metadata):
            return str((field.type.extra or {}).get("form", ""))
    return ""


def _fields(kind: Type) -> tuple[Field, ...]:
    return kind.fields if isinstance(kind, StructType) else ()


def _bare(kind: Type) -> Type:
    """The type without bounds and descriptions; of a list, the type of its items."""
    while isinstance(kind, Metadata | VarTupleType):
        kind = kind.type if isinstance(kind, Metadata) else kind.item_type
    return kind
