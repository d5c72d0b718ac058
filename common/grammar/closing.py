"""Closes the objects of a schema that does not say whether they may have further properties."""

from collections.abc import Iterator
from typing import Any

MAPS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
"""Keywords whose values are schemas by name."""
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
"""Keywords whose values may be lists of schemas."""
SINGLE = ("items", "additionalItems", "additionalProperties", "contains", "propertyNames")
"""Keywords whose values may be schemas."""
COMBINING = ("allOf", "anyOf", "oneOf", "$ref", "if", "then", "else", "not", "dependentSchemas")
OPEN = ("additionalProperties", "unevaluatedProperties", "patternProperties")
OBJECT = ("properties", "required", "minProperties", *OPEN)


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that allows no properties but those that it lists, where it does not say.

    JSON Schema allows any then. A model goes on with properties of its own invention, for as long
    as it may, and schemas that are made from a class, as clients do, seldom forbid it. vLLM's,
    llama.cpp's and Ollama's grammars have the same reading. A schema that combines objects with
    others is left as it is: each of its parts knows its own properties alone.
    """
    if any(_combined(each) for each in _within(schema)):
        return schema
    found: dict[str, Any] = _closed(schema)
    return found


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    for name, value in schema.items():
        if name in MAPS and isinstance(value, dict):
            found[name] = {key: _closed(each) for key, each in value.items()}
        elif name in LISTS and isinstance(value, list):
            found[name] = [_closed(each) for each in value]
        elif name in SINGLE:
            found[name] = _closed(value)
    if isinstance(schema.get("properties"), dict) and _closes(schema):
        found["additionalProperties"] = False
    return found


def _closes(schema: dict[str, Any]) -> bool:
    """Whether the listed properties of an object can be all that it has."""
    required, least = schema.get("required", ()), schema.get("minProperties", 0)
    listed = schema["properties"]
    return (
        not any(name in schema for name in OPEN)
        and isinstance(required, list | tuple)
        and all(isinstance(each, str) and each in listed for each in required)
        and isinstance(least, int)
        and least <= len(listed)
    )


def _combined(schema: dict[str, Any]) -> bool:
    """Whether a schema is about objects that another schema is about too."""
    parts = schema.get("allOf")
    several = isinstance(parts, list) and len(parts) > 1
    combining = sum(name in schema for name in COMBINING)
    return several or combining > 1 or (combining > 0 and any(name in schema for name in OBJECT))


def _within(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema, and all schemas in it."""
    if not isinstance(schema, dict):
        return
    yield schema
    for name, value in schema.items():
        if name in MAPS and isinstance(value, dict):
            inner = list(value.values())
        elif name in LISTS and isinstance(value, list):
            inner = value
        else:
            inner = [value] if name in SINGLE else []
        for each in inner:
            yield from _within(each)
