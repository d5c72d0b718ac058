"""Base classes of messages."""

from typing import Generic, Literal, TypeVar

import msgspec

Reply = TypeVar("Reply")
Item = TypeVar("Item")

Role = Literal["prefill", "decode", "mixed"]
"""A `mixed` shard does both, and keeps the KV that it computed of a prompt."""
FinishReason = Literal["stop", "length"]


class Request(msgspec.Struct, Generic[Reply], frozen=True, forbid_unknown_fields=True):
    """A call with one reply of type `Reply`. Subclass it directly, as `Request[Reply]`."""


class Stream(msgspec.Struct, Generic[Item], frozen=True, forbid_unknown_fields=True):
    """A call with any number of `Item`s as answer. Subclass it directly, as `Stream[Item]`."""


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Plain data inside messages and replies."""


class Done(Struct, frozen=True):
    """An empty reply."""
