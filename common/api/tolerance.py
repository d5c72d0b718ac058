"""Fields that clients send unasked: taken where they change nothing, else refused by name."""

import json
from functools import cache
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from msgspec import Meta

from sps2.common.messages import Struct


class Only(NamedTuple):
    """How a field that is not supported is told."""

    values: tuple[Any, ...]
    """What asks for nothing, and is taken as if it were absent; so is null."""
    why: str

    @property
    def taken(self) -> list[str]:
        """The same as JSON."""
        return [json.dumps(value) for value in self.values]

    @property
    def advice(self) -> str:
        """What to do about it."""
        taken = " or ".join(self.taken)
        return f"{self.why}; leave it out{f', or send {taken}' if taken else ''}"


def only(*values: Any, why: str) -> Meta:
    """Of a field that is not supported: it may be null, or one of `values`, which ask for nothing.

    Args:
        why: what cannot be done here, in words.
    """
    return Meta(description=f"not supported: {why}", extra={"only": Only(values, why)})


def ignored(why: str) -> Meta:
    """Of a field that may have any value of its type, for it changes no answer."""
    return Meta(description=f"ignored: {why}", extra={"ignored": True})


class Tolerant(Struct, frozen=True):
    """Data with fields that are `only` or `ignored`, by their annotations."""

    def __post_init__(self) -> None:
        for name, allowed in only_of(type(self)).items():
            value = getattr(self, name)
            if value is not None and value not in allowed.values:
                raise ValueError(f"unsupported field `{name}`: {allowed.advice}")


@cache
def only_of(kind: type) -> dict[str, Only]:
    """The fields of a type that are not supported."""
    found = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for meta in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
            if isinstance(meta, Meta) and meta.extra and "only" in meta.extra:
                found[name] = meta.extra["only"]
    return found
