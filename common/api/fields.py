"""Looks at the types of requests: what may stand in a field, and what was probably meant."""

import difflib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from msgspec.inspect import (
    CollectionType,
    DictType,
    LiteralType,
    Metadata,
    StructType,
    Type,
    UnionType,
)


class Field(NamedTuple):
    """A field of a request."""

    type: Type
    extra: dict[str, Any]
    """What its annotations tell beyond the type."""

    @property
    def choices(self) -> list[str]:
        """The words that it may have, if they can be listed."""
        return [
            str(value)
            for each in _parts(self.type)
            if isinstance(each, LiteralType)
            for value in each.values
        ]


def field_at(kind: Any, path: str) -> Field | None:
    """The field of a type at a path such as `messages[0].role`; None if there is none."""
    type_, extra = msgspec.inspect.type_info(kind), dict[str, Any]()
    for name in filter(None, re.sub(r"\[.*?\]", "", path).split(".")):
        found = [
            field.type
            for struct in _structs(type_)
            for field in struct.fields
            if field.encode_name == name
        ]
        if not found:
            return None
        type_ = found[0]
        extra = {
            key: value
            for each in _parts(type_)
            if isinstance(each, Metadata)
            for key, value in (each.extra or {}).items()
        }
    return Field(type_, extra)


def resembling(kind: Any, path: str) -> str | None:
    """A field there is, beside the one at `path` that there is not, and of nearly its name."""
    parent, _, name = path.rpartition(".")
    field = field_at(kind, parent)
    if field is None:
        return None
    known = [each.encode_name for struct in _structs(field.type) for each in struct.fields]
    return next(iter(difflib.get_close_matches(name, known, 1, 0.7)), None)


def _structs(type_: Type) -> list[StructType]:
    """The structs that a value of a type may be, or be made of, as lists and unions are."""
    return [each for each in _parts(type_) if isinstance(each, StructType)]


def _parts(type_: Type) -> Iterator[Type]:
    yield type_
    match type_:
        case Metadata(type=inner) | CollectionType(item_type=inner) | DictType(value_type=inner):
            yield from _parts(inner)
        case UnionType(types=types):
            for each in types:
                yield from _parts(each)
