"""bfloat16 tensors on their way, packed losslessly where that is faster than to send them."""

import time
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from sps2.common.errors import Invalid
from sps2.common.transport.expected import Like
from sps2.kernels import lossless, native

LEAST_BYTES = 8192
"""Smaller tensors are sent as they are: table and states of the coder would take their share."""
SAVED = 0.33
"""Share of the bytes that coding saves of keys, values, queries and attention outputs."""
MARGIN = 2.0
"""By this factor coding must be faster than what it saves on the link: it also takes cores from the
arithmetic, beside which a transfer may cost no time at all."""
NUMBERS = 1 << 17
RUNS = 3


def pack(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors, those of bfloat16 packed: [bytes] uint8. All on the CPU."""
    return tuple(
        lossless.encode(tensor)
        if tensor.dtype == torch.bfloat16 and tensor.nbytes >= LEAST_BYTES
        else tensor
        for tensor in tensors
    )


def are_packed(tensors: Sequence[Tensor]) -> bool:
    """Whether any of the tensors of a frame is packed, given that others have several axes."""
    return any(tensor.dtype == torch.uint8 and tensor.dim() == 1 for tensor in tensors)


def unpack(tensors: Sequence[Tensor], wanted: Sequence[Like]) -> tuple[Tensor, ...]:
    """Undo `pack`, where bfloat16 is wanted; `expected.check` is to see the result.

    Raises:
        Invalid: what came is damaged.
    """
    if len(tensors) != len(wanted):
        return tuple(tensors)
    try:
        return tuple(
            lossless.decode(tensor)
            if like.dtype == torch.bfloat16 and are_packed((tensor,))
            else tensor
            for tensor, like in zip(tensors, wanted, strict=True)
        )
    except ValueError as error:
        raise Invalid(str(error)) from error


def pays(link_gbit: float) -> bool:
    """Whether packing and unpacking here is faster than what it saves on such a link; always on one
    of 0 Gbit/s, if the coder could be built."""
    return native.built and (not link_gbit or link_gbit * MARGIN < SAVED * coder_gbit())


@cache
def coder_gbit() -> float:
    """Gbit/s of bfloat16 numbers that one thread here packs and unpacks, as measured once."""
    numbers = torch.randn(NUMBERS // 256, 4, 64, generator=torch.Generator().manual_seed(0))
    x = numbers.bfloat16()
    took_s = []
    for _ in range(RUNS):
        since_s = time.perf_counter()
        lossless.decode(lossless.encode(x))
        took_s.append(time.perf_counter() - since_s)
    return 8e-9 * x.nbytes / min(took_s)
