"""Entropy coding of bytes and of small signed integers, by asymmetric numeral systems.

rANS (Duda, arXiv 1311.2540) codes a symbol of probability p in -log2(p) bits, to about .1 %. Here
32 states take turns, so that a CPU can work on all of them at once (Giesen, arXiv 1402.3392); each
has 32 bits, gives up 16 when it is full, and knows probabilities in 4096ths. One core of a server
codes several hundred million symbols per second.

A stream is little-endian: the 32 states, then 16-bit words in the order in which a decoder needs
them. In each channel, symbol i belongs to state i % 32. The decoder takes the symbols of sixteen
states, and of each state that fell below 2^16 a word; then their lower bits, if the table says so,
and again words; then a word for each symbol that was an escape: the value. At the end every state
is 2^16, and no word is left: what is damaged ends otherwise, save for the value of an escape.
"""

import torch
from torch import Tensor

from sps2.kernels import check, rans
from sps2.kernels.entropy_tables import (
    RANGE,
    SLOTS,
    SYMBOLS,
    byte_table,
    frequencies_of,
    static,
    static_costs,
    static_tables,
)
from sps2.kernels.native import entropy as native

USED = SYMBOLS // 8
"""Bytes that say which symbols occur."""
FIRST = torch.zeros(1, dtype=torch.uint8)
"""The table of a stream's only channel."""


def encode_bytes(symbols: Tensor) -> Tensor:
    """Code uint8 symbols, of any shape, by how often each occurs: [bytes] uint8.

    The data begin with the table: 256 bits for the symbols that occur, and the frequencies of
    these less 1, two bytes each.
    """
    check.typed("symbols", symbols, torch.uint8)
    flat = symbols.reshape(1, -1).contiguous()
    if not flat.numel():
        return torch.empty(0, dtype=torch.uint8)
    frequencies = frequencies_of(_count(flat, 0, SYMBOLS)[0])
    used = frequencies > 0
    places = (used.view(USED, 8).long() << torch.arange(8)).sum(1).to(torch.uint8)
    sizes = (frequencies[used] - 1).to(torch.int16).view(torch.uint8)
    return torch.cat((places, sizes, _encode(flat, FIRST, byte_table(frequencies))))


def decode_bytes(data: Tensor, count: int) -> Tensor:
    """Undo `encode_bytes`: [count] uint8.

    Raises:
        ValueError: the data are damaged, or have another number of symbols.
    """
    check.typed("data", data, torch.uint8)
    check.shaped("data", data, (None,))
    if not count and not len(data):
        return torch.empty(0, dtype=torch.uint8)
    used = ((data[:USED, None].long() >> torch.arange(8)) & 1).flatten() > 0
    begin = USED + 2 * int(used.sum())
    if len(data) < begin:
        raise ValueError(f"{len(data)} bytes are no entropy-coded data: their table has {begin}")
    frequencies = torch.zeros(SYMBOLS, dtype=torch.int64)
    frequencies[used] = (data[USED:begin].clone().view(torch.int16).long() & 0xFFFF) + 1
    if int(frequencies.sum()) != SLOTS:
        raise ValueError("the table of entropy-coded data is damaged")
    like = torch.empty(1, count, dtype=torch.uint8)
    return _decode(data[begin:], like, FIRST, byte_table(frequencies))[0]


def encode_channels(codes: Tensor) -> Tensor:
    """Code int16 numbers [channels, count], each channel by the static table that suits it best.

    The tables are for numbers about 0: discrete Laplace and Gauss distributions. The data begin
    with the index of each channel's table, a byte each. [bytes] uint8.
    """
    check.typed("codes", codes, torch.int16)
    check.shaped("codes", codes, (None, None))
    codes = codes.contiguous()
    which = _cheapest(codes)
    return torch.cat((which, _encode(codes, which, static_tables())))


def decode_channels(data: Tensor, channels: int, count: int) -> Tensor:
    """Undo `encode_channels`: [channels, count] int16.

    Raises:
        ValueError: the data are damaged, or have another number of codes.
    """
    check.typed("data", data, torch.uint8)
    check.shaped("data", data, (None,))
    which = data[:channels].contiguous()
    if len(which) < channels or (channels and int(which.amax()) >= len(static())):
        raise ValueError(f"{len(data)} bytes are no entropy-coded data of {channels} channels")
    like = torch.empty(channels, count, dtype=torch.int16)
    return _decode(data[channels:], like, which, static_tables())


def encode_rows(codes: Tensor, which: Tensor) -> Tensor:
    """Code int16 numbers [rows, count], row r by static table `which[r]` (uint8): [bytes] uint8.

    The data do not say which tables were used.
    """
    check.typed("codes", codes, torch.int16)
    check.shaped("codes", codes, (None, None))
    return _encode(codes.contiguous(), which, static_tables())


def decode_rows(data: Tensor, which: Tensor, count: int) -> Tensor:
    """Undo `encode_rows`: [rows, count] int16.

    Raises:
        ValueError: the data are damaged, or have another number of codes; or there is no such
            table.
    """
    check.typed("data", data, torch.uint8)
    check.shaped("data", data, (None,))
    like = torch.empty(len(which), count, dtype=torch.int16)
    return _decode(data, like, which, static_tables())


def histograms(codes: Tensor, least: int, span: int) -> Tensor:
    """How often the values from `least` on occur in each row of int16 codes: [rows, span] int32.

    The first counts what is less, too, and the last what is more.
    """
    check.typed("codes", codes, torch.int16)
    check.shaped("codes", codes, (None, None))
    return _count(codes.contiguous(), least, span)


def _cheapest(codes: Tensor) -> Tensor:
    """The index of the static table that needs the fewest bits for each channel: uint8."""
    if not codes.numel():
        return torch.zeros(len(codes), dtype=torch.uint8)
    low, high = (max(-RANGE, min(RANGE, int(x))) for x in codes.aminmax())
    counts = _count(codes, low, high - low + 1)
    costs = static_costs()[low + RANGE : high + RANGE + 1]
    return (counts.float() @ costs).argmin(1).to(torch.uint8)


def _count(symbols: Tensor, least: int, span: int) -> Tensor:
    """How often the values from `least` on occur in each channel: [channels, span] int32.

    The first counts what is less, too, and the last what is more.
    """
    if native.serves(symbols):
        return native.count(symbols, least, span)
    counts = torch.zeros(len(symbols), span, dtype=torch.int32)
    places = (symbols.long() - least).clamp_(0, span - 1)
    return counts.scatter_add_(1, places, torch.ones_like(places, dtype=torch.int32))


def _encode(symbols: Tensor, which: Tensor, tables: Tensor) -> Tensor:
    if native.serves(symbols):
        return native.encode(symbols, which, tables)
    return rans.encode(symbols, which, tables)


def _decode(data: Tensor, like: Tensor, which: Tensor, tables: Tensor) -> Tensor:
    decode = native.decode if native.serves(data) else rans.decode
    if not decode(data.contiguous(), like, which, tables):
        raise ValueError(
            f"{len(data)} bytes of entropy-coded data are damaged, or not of {like.numel()} symbols"
        )
    return like
