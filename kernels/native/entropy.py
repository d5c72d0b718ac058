"""Entropy coding in C++, on every CPU for which the kernels could be built."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sps2.kernels import check, native
from sps2.kernels.native import abi

WORST = {torch.uint8: 2, torch.int16: 6}
"""Bytes of a symbol, at most."""
STATES = 4 * 32
"""Bytes of the states that a stream begins with."""


def serves(*tensors: Tensor) -> bool:
    return native.built and all(x.device.type == "cpu" for x in tensors)


def encode(symbols: Tensor, which: Tensor, tables: Tensor) -> Tensor:
    """A stream of symbols [channels, count], uint8 or int16, with table `which[c]` in channel c.

    Args:
        which: [channels] uint8.
        tables: [tables, ..] int32, rows of `sps2.kernels.entropy_tables.code_tables`.
    """
    room = STATES + symbols.numel() * WORST[symbols.dtype]
    data = torch.empty(room, dtype=torch.uint8)
    call = _coded(symbols, which, tables, data)
    native.invoke("sps2_rans_encode", call)
    return data[room - call.size :]


def decode(data: Tensor, like: Tensor, which: Tensor, tables: Tensor) -> bool:
    """Decode `data` into `like` [channels, count]; whether it was a whole stream."""
    call = _coded(like, which, tables, data)
    native.invoke("sps2_rans_decode", call)
    return int(call.size) >= 0


def count(symbols: Tensor, least: int, span: int) -> Tensor:
    """How often the values from `least` on occur: [channels, span] int32.

    The first counts what is less, too, and the last what is more.
    """
    channels, each = symbols.shape
    counts = torch.empty(channels, span, dtype=torch.int32)
    call = abi.Counted(
        channels=channels,
        count=each,
        width=symbols.element_size(),
        symbols=symbols.data_ptr(),
        least=least,
        span=span,
        counts=counts.data_ptr(),
    )
    native.invoke("sps2_rans_count", call)
    return counts


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """The exponents of contiguous bfloat16 numbers, and the rest: [numbers] uint8 each."""
    check.typed("x", x, torch.bfloat16)
    exponents, rest = (torch.empty(x.numel(), dtype=torch.uint8) for _ in range(2))
    native.invoke("sps2_split", _halves(x, exponents, rest))
    return exponents, rest


def join(exponents: Tensor, rest: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo `split`."""
    x = torch.empty(tuple(shape), dtype=torch.bfloat16)
    for name, half in (("exponents", exponents), ("rest", rest)):
        check.shaped(name, half, (x.numel(),))
        check.typed(name, half, torch.uint8)
    native.invoke("sps2_join", _halves(x, exponents, rest))
    return x


def _halves(x: Tensor, exponents: Tensor, rest: Tensor) -> abi.Halves:
    if not all(each.is_contiguous() for each in (x, exponents, rest)):
        raise ValueError("x, exponents and rest must be contiguous")
    return abi.Halves(
        count=x.numel(),
        numbers=x.data_ptr(),
        exponents=exponents.data_ptr(),
        rest=rest.data_ptr(),
    )


def _coded(symbols: Tensor, which: Tensor, tables: Tensor, data: Tensor) -> abi.Coded:
    check.typed("symbols", symbols, *WORST)
    check.typed("data", data, torch.uint8)
    check.shaped("which", which, symbols.shape[:1])
    check.typed("which", which, torch.uint8)
    if not all(x.is_contiguous() for x in (symbols, which, tables, data)):
        raise ValueError("symbols, which, tables and data must be contiguous")
    if len(which) and int(which.amax()) >= len(tables):
        raise ValueError(f"there are {len(tables)} tables, not {int(which.amax()) + 1}")
    channels, each = symbols.shape
    return abi.Coded(
        channels=channels,
        count=each,
        width=symbols.element_size(),
        symbols=symbols.data_ptr(),
        which=which.data_ptr(),
        tables=tables.data_ptr(),
        data=data.data_ptr(),
        size=len(data),
    )
