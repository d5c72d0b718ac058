"""Packs bfloat16 numbers losslessly, by entropy coding of their exponents.

Sign and mantissa of keys, values and activations are as good as random; the exponents have about
2.7 of 8 bits of information, whatever the layer. So two thirds of the bytes are left. Source of the
idea: DFloat11 (arXiv 2504.11651), there for weights. Every bit comes back, those of NaNs too.
"""

import torch
from torch import Tensor

from sps2.kernels import check
from sps2.kernels.entropy import decode_bytes, encode_bytes
from sps2.kernels.native import entropy as native

AXES = 3
HEADER = 4 * AXES


def encode(x: Tensor) -> Tensor:
    """Pack x, [a, b, c] bfloat16 on the CPU: [bytes] uint8.

    The sizes of the axes come first, 4 bytes each; then signs and mantissas, a byte each; then the
    exponents, as `sps2.kernels.entropy.encode_bytes` has them.
    """
    check.shaped("x", x, (None,) * AXES)
    check.typed("x", x, torch.bfloat16)
    exponents, rest = _split(x.contiguous())
    sizes = torch.tensor(x.shape, dtype=torch.int32).view(torch.uint8)
    return torch.cat((sizes, rest, encode_bytes(exponents)))


def decode(data: Tensor) -> Tensor:
    """Undo `encode`.

    Raises:
        ValueError: the data are damaged.
    """
    check.shaped("data", data, (None,))
    check.typed("data", data, torch.uint8)
    shape = data[:HEADER].clone().view(torch.int32).tolist() if len(data) >= HEADER else []
    count = 1
    for size in shape:
        count *= size
    if not shape or min(shape) < 0 or len(data) < HEADER + count:
        raise ValueError(f"{len(data)} bytes are no packed bfloat16 numbers of shape {shape}")
    rest = data[HEADER : HEADER + count].contiguous()
    return _join(decode_bytes(data[HEADER + count :], count), rest, shape)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Exponents and the rest, the sign below the mantissa: [numbers] uint8 each."""
    if native.serves(x):
        return native.split(x)
    bits = x.flatten().view(torch.int16).int()
    return (bits >> 7 & 255).to(torch.uint8), ((bits << 1 | bits >> 15 & 1) & 255).to(torch.uint8)


def _join(exponents: Tensor, rest: Tensor, shape: list[int]) -> Tensor:
    if native.serves(rest):
        return native.join(exponents, rest, shape)
    halves = exponents.int(), rest.int()
    bits = halves[0] << 7 | halves[1] >> 1 | halves[1] << 15
    return bits.to(torch.int16).view(torch.bfloat16).view(shape)
