"""Frames of the data plane: the header that precedes tensors."""

from collections.abc import Sequence
from math import prod
from typing import Annotated, Literal, get_args

import msgspec
import torch
from msgspec import Meta

from sps2.common.errors import Invalid
from sps2.common.validation import MALFORMED

Purpose = Literal[
    "kv",
    "q",
    "state",
    "probe",
    "prefix_q",
    "prefix_state",
    "hidden",
    "deposit",
    "question",
    "answer",
    "step",
    "ping",
    "pong",
]
"""The first four go between the ranks of a prefill, the next two between ranks and the shards that
hold the prefix, hidden states between the stages of a shard. Deposits go to the shards that keep
the KV; the next three are of decoding, and the last two measure links. A shard may send and receive
all kinds at once."""
Dtype = Literal["bfloat16", "float16", "float32", "int8", "uint8", "int32", "int64"]

_DTYPES: dict[Dtype, torch.dtype] = {name: getattr(torch, name) for name in get_args(Dtype)}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ITEM_BYTES = {name: dtype.itemsize for name, dtype in _DTYPES.items()}

VERSION = 1
MAX_HEADER_BYTES = 8192
MAX_PAYLOAD_BYTES = 4 << 30

Size = Annotated[int, Meta(ge=0, le=MAX_PAYLOAD_BYTES)]


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of a frame."""

    dtype: Dtype
    shape: Annotated[tuple[Size, ...], Meta(max_length=8)]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * _ITEM_BYTES[self.dtype]


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """The header of a frame, which says what the tensors after it are for.

    `requests` and `epochs` are parallel: one request of a prefill, or the batch of a decode step.
    `at` distinguishes frames that are otherwise alike: the ring step of exchanged KV, the first
    position of deposited KV and of queries about a prefix, the number of a decode step. `head` is
    the first KV head, in the whole model, of deposited KV and of queries about a prefix.
    """

    purpose: Purpose
    requests: tuple[str, ...]
    epochs: tuple[int, ...]
    layer: Size
    at: Size
    parts: Annotated[tuple[Part, ...], Meta(max_length=8)]
    head: Size = 0

    @property
    def nbytes(self) -> int:
        """Bytes of payload, without the header."""
        return sum(part.nbytes for part in self.parts)


def frame_for(
    purpose: Purpose,
    requests: tuple[str, ...],
    epochs: tuple[int, ...],
    layer: int,
    at: int,
    tensors: tuple[torch.Tensor, ...],
    head: int = 0,
) -> Frame:
    """The header for `tensors`, in their order.

    Raises:
        Invalid: a tensor has an unsupported dtype.
    """
    try:
        parts = tuple([Part(_NAMES[tensor.dtype], tuple(tensor.shape)) for tensor in tensors])
    except KeyError as error:
        raise Invalid(f"a frame carries no tensor of {error}") from None
    return Frame(purpose, requests, epochs, layer, at, parts, head)


_decoder = msgspec.msgpack.Decoder(Frame)
_encoder = msgspec.msgpack.Encoder()


def encode(frame: Frame) -> bytes:
    """Encode a header; at most `MAX_HEADER_BYTES`.

    Raises:
        Invalid: the header is longer (a batch of too many requests), or the tensors are larger than
            `MAX_PAYLOAD_BYTES`.
    """
    if frame.nbytes > MAX_PAYLOAD_BYTES:
        raise Invalid(
            f"a {frame.purpose} frame of {frame.nbytes} bytes is over {MAX_PAYLOAD_BYTES}: "
            "split the prompt among more shards"
        )
    data = _encoder.encode(frame)
    if len(data) > MAX_HEADER_BYTES:
        raise Invalid(f"a frame header of {len(data)} bytes is over {MAX_HEADER_BYTES}")
    return data


def decode(data: bytes | memoryview) -> Frame:
    """Decode a header from a peer.

    Raises:
        Invalid: not a frame, or its tensors are larger than `MAX_PAYLOAD_BYTES`.
    """
    try:
        frame = _decoder.decode(data)
    except MALFORMED as error:
        raise Invalid(f"malformed frame header: {error}") from error
    if len(frame.requests) != len(frame.epochs) or frame.nbytes > MAX_PAYLOAD_BYTES:
        raise Invalid("frame header out of limits")
    return frame


def allocate(frame: Frame) -> tuple[torch.Tensor, ...]:
    """New CPU tensors for the frame's payload, in pinned memory if a GPU is in use.

    Raises:
        Invalid: the shapes are impossible, or there is no memory for them.
    """
    pinned = torch.cuda.is_initialized()
    try:
        return tuple(
            torch.empty(part.shape, dtype=_DTYPES[part.dtype], pin_memory=pinned)
            for part in frame.parts
        )
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:
        raise Invalid(f"no tensors can be made for {frame.parts}: {error}") from error


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """A view of the tensor's memory, without a copy.

    Raises:
        Invalid: the tensor is not a contiguous CPU tensor.
    """
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise Invalid("only contiguous CPU tensors can be sent; call .contiguous() first")
    if not tensor.numel():
        return memoryview(bytearray())
    if tensor.requires_grad:
        tensor = tensor.detach()
    if not tensor.dim() or tensor.stride(-1) != 1:
        tensor = tensor.view(-1)
    return tensor.view(torch.uint8).numpy().data.cast("B")


def payload(frame: Frame, tensors: Sequence[torch.Tensor]) -> list[memoryview]:
    """The memory of a frame's tensors. Raises Invalid if the frame describes other tensors."""
    if len(frame.parts) != len(tensors):
        raise Invalid(f"a frame of {len(frame.parts)} parts was given {len(tensors)} tensors")
    for part, tensor in zip(frame.parts, tensors, strict=True):
        if part.shape != tuple(tensor.shape) or _NAMES.get(tensor.dtype) != part.dtype:
            raise Invalid(f"{tensor.dtype} {tuple(tensor.shape)} is not {part}")
    return [as_bytes(tensor) for tensor in tensors]
