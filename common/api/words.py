"""Describes types of the API in words, for error messages and for the tables of docs/api.md."""

from typing import NamedTuple

from msgspec.inspect import (
    BoolType,
    CollectionType,
    DictType,
    FloatType,
    IntType,
    LiteralType,
    Metadata,
    NamedTupleType,
    NoneType,
    StrType,
    StructType,
    Type,
    UnionType,
)

from sps2.common.words import listed

OTHERS = {
    "int": "a whole number",
    "float": "a fraction",
    "str": "text",
    "bool": "a boolean",
    "array": "a list",
    "object": "an object",
}
"""msgspec's names of types that were sent, in words."""


class _Phrase(NamedTuple):
    """A value: "a number from 0 to 2"; several: "numbers from 0 to 2"."""

    one: str
    many: str
    bounds: str = ""


def in_words(type_: Type, null: bool = False) -> str:
    """What a value of a type must be, for example "a number from 0 to 2".

    Args:
        null: whether to add "or null" where null is allowed.
    """
    said = _one(type_)
    is_nullable = isinstance(_bare(type_), UnionType) and any(map(_is_null, _choices(type_)))
    return f"{said} or null" if null and is_nullable else said


def sent(kind: str) -> str:
    """The type of a sent value in words, from msgspec's name for it."""
    return OTHERS.get(kind, kind)


def _one(type_: Type) -> str:
    return listed([each.one + each.bounds for each in _phrases(type_)])


def _many(type_: Type) -> str:
    return listed([each.many + each.bounds for each in _phrases(type_)])


def _phrases(type_: Type) -> list[_Phrase]:
    named = _extra(type_)
    if "form" in named:
        return [_Phrase(named["form"], named["form"])]
    if "noun" in named:
        return [_Phrase(f"a {named['noun']}", f"{named['noun']}s")]
    if isinstance(_bare(type_), UnionType):
        return [each for part in _choices(type_) if not _is_null(part) for each in _phrases(part)]
    return [_phrase(_bare(type_))]


def _phrase(type_: Type) -> _Phrase:
    match type_:
        case BoolType():
            return _Phrase("true or false", "booleans")
        case IntType():
            return _Phrase("a whole number", "whole numbers", _range(type_))
        case FloatType():
            return _Phrase("a number", "numbers", _range(type_))
        case StrType():
            length = _length(type_)
            return _Phrase("text", "texts", f" of {length} characters" if length else "")
        case LiteralType(values=values):
            words = listed([f"`{value}`" for value in values])
            return _Phrase(words, words)
        case NamedTupleType(fields=fields):
            names = f"[{', '.join(field.encode_name for field in fields)}]"
            return _Phrase(names, names)
        case CollectionType(item_type=inner):
            return _Phrase("a list", "lists", _contents(_length(type_), _many(inner)))
        case DictType(value_type=inner):
            return _Phrase("an object", "objects", _contents(_length(type_), _many(inner)))
        case StructType():
            return _Phrase("an object", "objects")
    return _Phrase("any value", "")


def _contents(length: str, many: str) -> str:
    what = " ".join(filter(None, [length, many or (length and "values")]))
    return f" of {what}" if what else ""


def _range(type_: IntType | FloatType) -> str:
    least, most = type_.ge, type_.le
    if (least, most) == (-(2**63), 2**63 - 1):
        return " of 64 bits"
    if type_.gt is not None:
        above = f" over {_digits(type_.gt)}"
        return above if most is None else f"{above}, up to {_digits(most)}"
    if least is not None:
        if most is None:
            return f" of at least {_digits(least)}"
        return f" from {_digits(least)} to {_digits(most)}"
    return "" if most is None else f" up to {_digits(most)}"


def _digits(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _length(type_: StrType | CollectionType | DictType) -> str:
    least, most = type_.min_length, type_.max_length
    if most is not None:
        return f"{least} to {most}" if least else f"up to {most}"
    return f"{least} or more" if least else ""


def _bare(type_: Type) -> Type:
    while isinstance(type_, Metadata):
        type_ = type_.type
    return type_


def _extra(type_: Type) -> dict[str, str]:
    """The `extra` of the type's own annotations, not of its parts'."""
    found: dict[str, str] = {}
    while isinstance(type_, Metadata):
        found |= type_.extra or {}
        type_ = type_.type
    return found


def _choices(type_: Type) -> tuple[Type, ...]:
    bare = _bare(type_)
    return bare.types if isinstance(bare, UnionType) else (bare,)


def _is_null(type_: Type) -> bool:
    return isinstance(_bare(type_), NoneType)
