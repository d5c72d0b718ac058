"""Unsupported fields that clients send: accepted where they change nothing, else refused."""

import json
from functools import cache
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from msgspec import Meta

from sps2.common.messages import Struct


class Only(NamedTuple):
    """The values of an unsupported field that are accepted, and why others are not."""

    values: tuple[Any, ...]
    """Neutral values, which are treated like an absent field; so is null."""
    why: str

    @property
    def accepted(self) -> list[str]:
        """The neutral values as JSON."""
        return [json.dumps(value) for value in self.values]

    @property
    def advice(self) -> str:
        """The end of the error message: why the field is refused, and what to send instead."""
        accepted = " or ".join(self.accepted)
        return f"{self.why}; leave it out{f', or send {accepted}' if accepted else ''}"


def only(*values: Any, why: str) -> Meta:
    """Annotation of an unsupported field, which may only be null or one of `values`.

    Args:
        values: neutral values, which change nothing.
        why: what is not possible here, in words.
    """
    return Meta(description=f"not supported: {why}", extra={"only": Only(values, why)})


def ignored(why: str) -> Meta:
    """Annotation of a field that may have any value of its type, since it changes no answer."""
    return Meta(description=f"ignored: {why}", extra={"ignored": True})


class Tolerant(Struct, frozen=True):
    """A struct whose fields may be annotated with `only` or `ignored`."""

    def __post_init__(self) -> None:
        for name, allowed in only_of(type(self)).items():
            value = getattr(self, name)
            if value is not None and value not in allowed.values:
                raise ValueError(f"unsupported field `{name}`: {allowed.advice}")


@cache
def only_of(kind: type) -> dict[str, Only]:
    """The fields of a type that are annotated with `only`, by name."""
    found = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for meta in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
            if isinstance(meta, Meta) and meta.extra and "only" in meta.extra:
                found[name] = meta.extra["only"]
    return found
