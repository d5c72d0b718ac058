"""A hash of the message types: processes with different hashes do not understand each other."""

import json
from collections.abc import Sequence
from functools import cache
from hashlib import blake2s
from typing import Any

import msgspec

from sps2.common import messages


@cache
def schema_hash() -> str:
    """16 hexadecimal digits over names, fields and types of all messages, without docstrings."""
    types = [
        found
        for _, found in sorted(vars(messages).items())
        if isinstance(found, type) and issubclass(found, msgspec.Struct)
    ]
    return hash_of(types)


def hash_of(types: Sequence[type[msgspec.Struct]]) -> str:
    """As `schema_hash`, over other types."""
    found = msgspec.json.schema_components(types, schema_hook=lambda kind: {"type": str(kind)})
    schema = _without_docs(found)
    return blake2s(json.dumps(schema, sort_keys=True).encode(), digest_size=8).hexdigest()


def _without_docs(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: _without_docs(value) for key, value in schema.items() if key != "description"}
    if isinstance(schema, list | tuple):
        return [_without_docs(value) for value in schema]
    return schema
