"""The requests of a frame's rows, packed as a tensor: a header has no room for a large batch."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec
import torch
from torch import Tensor

from sps2.common.errors import Invalid
from sps2.common.transport.expected import Like, check
from sps2.common.validation import MALFORMED
from sps2.services.decode.kv.holding import Key

Content = TypeVar("Content")


class Unanswered(msgspec.Struct, frozen=True, array_like=True):
    """Sent in place of an answer: the requests that are no longer held, or why answering failed."""

    gone: list[Key] = []
    why: str = ""


_keys = msgspec.msgpack.Decoder(list[Key])
_unanswered = msgspec.msgpack.Decoder(Unanswered)


def pack(content: Sequence[Key] | Unanswered) -> Tensor:
    """Encode as a tensor of bytes, [bytes] uint8."""
    return torch.frombuffer(bytearray(msgspec.msgpack.encode(content)), dtype=torch.uint8)


def unpack_keys(packed: Tensor) -> list[Key]:
    """Decode keys from `pack`. Raises Invalid if the tensor does not hold any."""
    return _unpack("keys", packed, _keys)


def unpack_unanswered(packed: Tensor) -> Unanswered:
    """Decode an `Unanswered` from `pack`. Raises Invalid if the tensor does not hold one."""
    return _unpack("a refusal", packed, _unanswered)


def _unpack(what: str, packed: Tensor, decoder: msgspec.msgpack.Decoder[Content]) -> Content:
    check(what, (packed,), (Like(torch.uint8, (None,)),))
    try:
        return decoder.decode(packed.numpy().data)
    except MALFORMED as error:
        raise Invalid(f"{what} cannot be read: {error}") from error
