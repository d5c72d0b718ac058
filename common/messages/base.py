"""What messages are made of."""

from typing import Generic, Literal, TypeVar

import msgspec

Reply = TypeVar("Reply")
Item = TypeVar("Item")

Role = Literal["prefill", "decode", "mixed"]
"""`mixed` does both: what it computes of a prompt's KV stays with it."""
FinishReason = Literal["stop", "length"]


class Request(msgspec.Struct, Generic[Reply], frozen=True, forbid_unknown_fields=True):
    """A call with one reply of type `Reply`. Subclass it directly, as `Request[Reply]`."""


class Stream(msgspec.Struct, Generic[Item], frozen=True, forbid_unknown_fields=True):
    """A call answered by any number of `Item`s. Subclass it directly, as `Stream[Item]`."""


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Plain data inside messages and replies."""


class Done(Struct, frozen=True):
    """An empty reply."""
