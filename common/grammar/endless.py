"""Finds schemas whose JSON could never end, because each value requires another of its kind."""

from collections.abc import Iterator
from typing import Any

ROUNDS = 32
"""How often all references are looked at before a schema is given the benefit of the doubt."""


def has_an_end(schema: dict[str, Any]) -> bool:
    """Whether some finite JSON value can follow a schema, as far as its references decide."""
    order = reversed(dict.fromkeys(_references(schema)))
    # the last ones first: a definition usually comes before those that it leads to
    unknown = {each: found for each in order if (found := _at(schema, each)) is not None}
    known, ends = {*unknown}, set[str]()
    for _ in range(ROUNDS):
        before = len(ends)
        for each in [*unknown]:
            if _ends(unknown[each], known, ends):
                ends.add(each)
                del unknown[each]
        if len(ends) == before:
            return _ends(schema, known, ends)
    return True


def _ends(schema: Any, references: set[str], ends: set[str]) -> bool:
    """Whether a value can be finite, given the references that are known to lead to one."""
    if not isinstance(schema, dict) or "enum" in schema or "const" in schema:
        return True

    def all_end(schemas: Any) -> bool:
        return all(_ends(each, references, ends) for each in schemas)

    for reference in _texts(schema.get("$ref")):
        if reference in references and reference not in ends:
            return False
    if not all_end(_listed(schema, "allOf")):
        return False
    for name in ("anyOf", "oneOf"):
        options = _listed(schema, name)
        if options and not any(_ends(each, references, ends) for each in options):
            return False
    kinds = _texts(schema.get("type"))
    if kinds == ["object"]:
        properties = schema.get("properties")
        known = properties if isinstance(properties, dict) else {}
        others = schema.get("additionalProperties")
        return all_end(known.get(name, others) for name in _texts(schema.get("required")))
    least = schema.get("minItems")
    if kinds == ["array"] and isinstance(least, int):
        first, rest = _listed(schema, "prefixItems"), schema.get("items")
        return all_end(first[:least]) and (least <= len(first) or all_end([rest]))
    return True


def _texts(given: Any) -> list[str]:
    """The texts in a list, or the only one; no others, since nobody has checked the schema."""
    return [
        each for each in (given if isinstance(given, list) else [given]) if isinstance(each, str)
    ]


def _listed(schema: dict[str, Any], name: str) -> list[Any]:
    found = schema.get(name)
    return found if isinstance(found, list) else []


def _references(schema: Any) -> Iterator[str]:
    """Every `$ref` to a place in the schema itself, wherever it is."""
    if isinstance(schema, dict):
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            yield reference
    inner = schema.values() if isinstance(schema, dict) else schema
    for each in inner if isinstance(schema, dict | list) else ():
        yield from _references(each)


def _at(schema: Any, reference: str) -> Any:
    """What a reference like `#/$defs/name` points to; None if there is nothing."""
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and name.isdecimal() and int(name) < len(schema):
            schema = schema[int(name)]
        elif isinstance(schema, dict):
            schema = schema.get(name)
        else:
            return None
    return schema
