"""GGUF's blocks of quantised weights as the blocks that the kernels multiply from.

The codes, scales and minimums stay as they are; only their order changes. The layouts are those of
llama.cpp's ggml-common.h, as read by the package gguf (quants.py).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sps2.kernels.weight_forms import FORMS, Form, Parts, QuantisedWeight, packed


def is_kept(kind: str) -> bool:
    """Whether the kernels multiply from blocks of this GGUF type."""
    return kind in _READERS


def kept_form(kind: str) -> Form:
    """The form in which a GGUF type is kept. Raises KeyError if `is_kept` is false."""
    return FORMS[kind]


def kept(kind: str, raw: Tensor) -> QuantisedWeight:
    """A weight in blocks.

    Args:
        kind: the GGUF type, one that `is_kept`.
        raw: [outputs, bytes] uint8, rows as in the file.
    """
    form = kept_form(kind)
    down = raw.shape[1] // _BYTES[kind]
    return packed(form, _READERS[kind](raw.unflatten(1, (down, _BYTES[kind]))))


_BYTES = {
    **{"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "IQ4_NL": 18},
    **{"Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210, "IQ4_XS": 136},
}
"""Of a block of the file."""

Read = Callable[[Tensor], Parts]
"""Takes the blocks of a type apart: [outputs, blocks, bytes] uint8."""


def _simple(high: bool, minimum: bool, nibbles: bool = True) -> Read:
    """Blocks of 32: scale, minimum, fifth bits, codes."""

    def read(raw: Tensor) -> Parts:
        sizes = [2, 2 * minimum, 4 * high]
        scale, least, fifths, codes = raw.split([*sizes, raw.shape[-1] - sum(sizes)], -1)
        codes = _fields(codes, 4, 16) if nibbles else codes ^ 128  # from int8
        if high:
            bits = fifths[..., None] >> torch.arange(8, dtype=torch.uint8) & 1
            codes = codes | bits.flatten(2) << 4
        return Parts(codes.flatten(1), _halves(scale), _halves(least) if minimum else None)

    return read


def _q2_k(raw: Tensor) -> Parts:
    counts, codes, scale, minimum = raw.split([16, 64, 2, 2], -1)
    return Parts(
        _fields(codes, 2, 32).flatten(1),
        _halves(scale),
        -_halves(minimum),
        (counts & 15).view(torch.int8),
        (counts >> 4).view(torch.int8),
    )


def _q3_k(raw: Tensor) -> Parts:
    mask, codes, counts, scale = raw.split([32, 64, 12, 2], -1)
    low, high = counts.split([8, 4], -1)
    scales = _fields(low, 4, 8) | _fields(high, 2, 4) << 4
    codes = _fields(codes, 2, 32) | _fields(mask, 1, 32) << 2
    return Parts(codes.flatten(1), _halves(scale), scales=_signed(scales))


def _q4_k(raw: Tensor) -> Parts:
    scale, minimum, counts, codes = raw.split([2, 2, 12, 128], -1)
    return _with_minimums(_fields(codes, 4, 32), scale, minimum, counts)


def _q5_k(raw: Tensor) -> Parts:
    scale, minimum, counts, fifths, codes = raw.split([2, 2, 12, 32, 128], -1)
    codes = _fields(codes, 4, 32) | _fields(fifths, 1, 32) << 4
    return _with_minimums(codes, scale, minimum, counts)


def _q6_k(raw: Tensor) -> Parts:
    low, high, counts, scale = raw.split([128, 64, 16, 2], -1)
    codes = _fields(low, 4, 64) | _fields(high, 2, 32) << 4
    return Parts(codes.flatten(1), _halves(scale), scales=counts.view(torch.int8))


def _iq4_xs(raw: Tensor) -> Parts:
    scale, high, low, codes = raw.split([2, 2, 4, 128], -1)
    scales = _fields(low, 4, 1) | _fields(high, 2, 1) << 4
    return Parts(_fields(codes, 4, 16).flatten(1), _halves(scale), scales=_signed(scales))


def _with_minimums(codes: Tensor, scale: Tensor, minimum: Tensor, counts: Tensor) -> Parts:
    """Of Q4_K and Q5_K: eight scales and minimums of 6 bits, which lie in 12 bytes."""
    scales, minimums, last = counts.split(4, -1)
    return Parts(
        codes.flatten(1),
        _halves(scale),
        -_halves(minimum),  # which the file's numbers are less
        torch.cat((scales & 63, last & 15 | scales >> 2 & 48), -1).view(torch.int8),
        torch.cat((minimums & 63, last >> 4 | minimums >> 2 & 48), -1).view(torch.int8),
    )


def _fields(x: Tensor, width: int, beside: int) -> Tensor:
    """Numbers of `width` bits: the lowest of `beside` bytes come first, then the next ones."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8)[:, None]
    fields: Tensor = x.unflatten(-1, (-1, 1, beside)) >> shifts & (1 << width) - 1
    return fields.flatten(2)


def _signed(scales: Tensor) -> Tensor:
    """Of 6 bits, with their zero at 32."""
    return scales.view(torch.int8) - 32


def _halves(raw: Tensor) -> Tensor:
    """[.., 2] bytes -> [..] float16."""
    return raw.contiguous().view(torch.float16).squeeze(-1)


_READERS: dict[str, Read] = {
    "Q4_0": _simple(high=False, minimum=False),
    "Q4_1": _simple(high=False, minimum=True),
    "Q5_0": _simple(high=True, minimum=False),
    "Q5_1": _simple(high=True, minimum=True),
    "Q8_0": _simple(high=False, minimum=False, nibbles=False),
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _simple(high=False, minimum=False),
    "IQ4_XS": _iq4_xs,
}
