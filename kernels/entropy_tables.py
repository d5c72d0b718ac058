"""Tables of the entropy coder: frequencies of symbols, which sum up to 4096 in each table.

The static tables are discrete Laplace and Gauss distributions. Sender and receiver each compute
them, and must get the same to the last bit: hence in decimals, whose results no platform changes.
"""

from collections.abc import Sequence
from decimal import Context, Decimal, localcontext
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

SLOTS = 4096
"""The sum of a table's frequencies."""
SYMBOLS = 256
NO_ESCAPE = 256
THIRDS = range(-9, 19)
"""Scales of the static tables: thirds of powers of two."""
SHAPES = 2
RANGE = 512
"""Values of this magnitude or more have no symbol in any static table."""
SHARPEST = 16
"""Scale from which on the lower bits are sent as they are: nothing can be learned of them."""
ESCAPED_BITS = 16
TABLE = SLOTS + SYMBOLS + 4
"""Numbers of a code table."""


class Alphabet(NamedTuple):
    """What the symbols of a table stand for.

    frequencies: of each symbol; the last is the escape, if there is one.
    least: the value, shifted right, of symbol 0.
    escape: the symbol of all values that have no other; `NO_ESCAPE` if there is none.
    shift: the lower bits that are sent as they are.
    """

    frequencies: Sequence[int] | Tensor
    least: int
    escape: int
    shift: int


@cache
def static() -> tuple[Alphabet, ...]:
    """56 tables for signed integers: Laplace with the scales 2^-3 .. 2^6, then Gauss."""
    with localcontext(Context(prec=28)):
        return tuple(_static(shape, third) for shape in range(SHAPES) for third in THIRDS)


def _static(shape: int, third: int) -> Alphabet:
    """A table of density exp(-|x| / scale), or exp(-(x / scale)^2 / 2)."""
    scale = (Decimal(2).ln() * third / 3).exp()
    shift = max(0, -(-third // 3) - SHARPEST.bit_length() + 1)
    scale /= 2**shift
    density = [Decimal(1)]
    while density[-1] * SLOTS >= sum(density) and len(density) < SYMBOLS // 2 - 1:
        x = len(density) / scale
        density.append((-x if shape == 0 else -x * x / 2).exp())
    shares = [*reversed(density[1:]), *density]
    rest = density[-1]  # about what lies beyond, on either side
    return Alphabet(_scaled([*shares, rest]), 1 - len(density), len(shares), shift)


def _scaled(shares: Sequence[Decimal]) -> list[int]:
    """Frequencies in proportion, none below 1; the most frequent takes what rounding leaves."""
    free, total = SLOTS - len(shares), sum(shares)
    frequencies = [1 + int(share * free / total) for share in shares]
    frequencies[frequencies.index(max(frequencies))] += SLOTS - sum(frequencies)
    return frequencies


def frequencies_of(counts: Tensor) -> Tensor:
    """Frequencies of symbols that occurred [256] times: at least 1 for each that did."""
    used = counts > 0
    free, total = SLOTS - int(used.sum()), max(1, int(counts.sum()))
    frequencies = counts.long() * free // total + used
    frequencies[frequencies.argmax()] += SLOTS - frequencies.sum()
    return frequencies


def code_table(alphabet: Alphabet) -> Tensor:
    """`CodeTable` of attention.cpp: [`TABLE`] int32.

    It has, for each value of a state's lower 12 bits, the symbol (8 bits), the offset within it
    (12) and its frequency less 1 (12); for each symbol its start and its frequency less 1; and
    `least`, `escape` and `shift`.
    """
    sizes = torch.zeros(SYMBOLS, dtype=torch.int64)
    sizes[: len(alphabet.frequencies)] = torch.as_tensor(alphabet.frequencies)
    starts = sizes.cumsum(0) - sizes
    symbols = torch.arange(SYMBOLS).repeat_interleave(sizes)
    offsets = torch.arange(SLOTS) - starts[symbols]
    slots = (sizes[symbols] - 1) | offsets << 12 | symbols << 24
    ranges = (sizes - 1).clamp_(min=0) | starts << 12
    rest = torch.tensor([alphabet.least, alphabet.escape, alphabet.shift, 0])
    return torch.cat((slots, ranges, rest)).to(torch.int32)  # the upper bit wraps


def byte_table(frequencies: Tensor) -> Tensor:
    """The table of bytes with these frequencies, [256]: [1, `TABLE`] int32."""
    return code_table(Alphabet(frequencies, 0, NO_ESCAPE, 0))[None]


@cache
def static_tables() -> Tensor:
    """The code tables of `static`: [56, `TABLE`] int32."""
    return torch.stack([code_table(each) for each in static()])


@cache
def static_costs() -> Tensor:
    """Bits of the values from -`RANGE` on, of which the first and last are escaped, in each table:
    [2 * RANGE + 1, tables] float32."""
    values = torch.arange(-RANGE, RANGE + 1)
    costs = []
    for each in static():
        bits = 12 - torch.tensor(each.frequencies, dtype=torch.float32).log2()
        bits[each.escape] += ESCAPED_BITS
        symbols = (values >> each.shift) - each.least
        outside = (symbols < 0) | (symbols >= each.escape)
        costs.append(bits[symbols.masked_fill(outside, each.escape)] + each.shift)
    return torch.stack(costs, 1)
