"""Inspects request types: which values a field may have, and which field was probably meant."""

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
    """The `extra` of its annotations."""

    @property
    def choices(self) -> list[str]:
        """The literal values that the field may have; empty if there are none."""
        return [
            str(value)
            for each in _parts(self.type)
            if isinstance(each, LiteralType)
            for value in each.values
        ]


def field_at(kind: Any, path: str) -> Field | None:
    """The field or item at a path like `messages[0].role`; None if the type has none there."""
    type_, extra = msgspec.inspect.type_info(kind), dict[str, Any]()
    for name in re.findall(r"[^.\[\]]+|\[[^\]]*\]", path):
        found = [*_items(type_)] if name.startswith("[") else _fields(type_, name)
        if not found:
            return None
        type_ = found[0] if len(found) == 1 else UnionType(tuple(found))
        extra = {
            key: value
            for each in _parts(type_)
            if isinstance(each, Metadata)
            for key, value in (each.extra or {}).items()
        }
    return Field(type_, extra)


def resembling(kind: Any, path: str) -> str | None:
    """The known field with nearly the name of the unknown one at `path`; None if there is none."""
    parent, _, name = path.rpartition(".")
    field = field_at(kind, parent)
    if field is None:
        return None
    known = [each.encode_name for struct in _structs(field.type) for each in struct.fields]
    return next(iter(difflib.get_close_matches(name, known, 1, 0.7)), None)


def _fields(type_: Type, name: str) -> list[Type]:
    """The types of the field of this name, in the first struct that has it."""
    structs = [{each.encode_name: each.type for each in one.fields} for one in _structs(type_)]
    return [each[name] for each in structs if name in each][:1]


def _items(type_: Type) -> Iterator[Type]:
    """The item types of all lists and dicts that a value of the type may be."""
    match type_:
        case CollectionType(item_type=inner) | DictType(value_type=inner):
            yield inner
        case Metadata(type=inner):
            yield from _items(inner)
        case UnionType(types=types):
            for each in types:
                yield from _items(each)


def _structs(type_: Type) -> list[StructType]:
    """The structs that a value of a type may be or contain."""
    return [each for each in _parts(type_) if isinstance(each, StructType)]


def _parts(type_: Type) -> Iterator[Type]:
    yield type_
    match type_:
        case Metadata(type=inner) | CollectionType(item_type=inner) | DictType(value_type=inner):
            yield from _parts(inner)
        case UnionType(types=types):
            for each in types:
                yield from _parts(each)
