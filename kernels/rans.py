"""Streams of the entropy coder in torch operations: slow, for where C++ could not be built.

`sps2.kernels.entropy` describes the stream. Each function does for sixteen states at once what
rans.inc does for each of them.
"""

import torch
from torch import Tensor

from sps2.kernels.entropy_tables import SLOTS, SYMBOLS

STATES, HALF = 32, 16
LEAST_STATE = 1 << 16


def encode(symbols: Tensor, which: Tensor, tables: Tensor) -> Tensor:
    """`sps2.kernels.native.entropy.encode`."""
    states = torch.full((STATES,), LEAST_STATE)
    words: list[Tensor] = []  # the last of the stream first
    for channel in reversed(range(len(symbols))):
        coder = _Coder(tables[int(which[channel])])
        values = symbols[channel].long()
        for begin in reversed(range(0, len(values), HALF)):
            few = values[begin : begin + HALF]
            words += coder.encode(few, _part(states, begin, len(few)))
    stream = [(states & 0xFFFF), states >> 16]
    body = torch.cat(words[::-1]) if words else states[:0]
    return torch.cat((torch.stack(stream, 1).flatten(), body)).to(torch.int16).view(torch.uint8)


def decode(data: Tensor, like: Tensor, which: Tensor, tables: Tensor) -> bool:
    """`sps2.kernels.native.entropy.decode`."""
    if len(data) < 4 * STATES or len(data) % 2:
        return False
    words = _Words(data.clone().view(torch.int16).long() & 0xFFFF)
    pairs = words.take(2 * STATES).view(STATES, 2)
    states = pairs[:, 0] | pairs[:, 1] << 16
    try:
        for channel in range(len(like)):
            coder = _Coder(tables[int(which[channel])])
            for begin in range(0, like.shape[1], HALF):
                few = like[channel, begin : begin + HALF]
                few.copy_(coder.decode(_part(states, begin, len(few)), words))
    except EOFError:
        return False
    return not words.left and bool((states == LEAST_STATE).all())


def _part(states: Tensor, begin: int, count: int) -> Tensor:
    first = begin % STATES
    return states[first : first + count]


class _Words:
    """The words of a stream, in order."""

    def __init__(self, words: Tensor) -> None:
        self._words = words
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._words) - self._at

    def take(self, count: int) -> Tensor:
        if count > self.left:
            raise EOFError
        self._at += count
        return self._words[self._at - count : self._at]

    def refill(self, states: Tensor) -> None:
        low = states < LEAST_STATE
        states[low] = states[low] << 16 | self.take(int(low.sum()))


class _Coder:
    """Codes with one table."""

    def __init__(self, table: Tensor) -> None:
        self._slots = table[:SLOTS].long()
        self._ranges = table[SLOTS : SLOTS + SYMBOLS].long()
        self._least, self._escape, self._shift, _ = table[SLOTS + SYMBOLS :].tolist()

    def encode(self, values: Tensor, states: Tensor) -> list[Tensor]:
        """Put values into as many states; returns the words given up, the last group first."""
        symbols = (values >> self._shift) - self._least
        escaped = (symbols < 0) | (symbols >= self._escape)
        words = [values[escaped] & 0xFFFF]
        if self._shift:
            words.append(_give_up(states, states >> (32 - self._shift) > 0))
            states.copy_(states << self._shift | values & ((1 << self._shift) - 1))
        ranges = self._ranges[symbols.masked_fill(escaped, self._escape)]
        sizes = (ranges & 0xFFF) + 1
        words.append(_give_up(states, states >> 20 >= sizes))
        states.copy_((states // sizes << 12) + states % sizes + (ranges >> 12))
        return words

    def decode(self, states: Tensor, words: _Words) -> Tensor:
        """Take a value out of each state."""
        slots = self._slots[states & 0xFFF]
        sizes, offsets, symbols = (slots & 0xFFF) + 1, slots >> 12 & 0xFFF, slots >> 24 & 0xFF
        states.copy_(sizes * (states >> 12) + offsets)
        words.refill(states)
        values: Tensor = (symbols + self._least) << self._shift
        if self._shift:
            values |= states & ((1 << self._shift) - 1)
            states >>= self._shift
            words.refill(states)
        escaped = symbols == self._escape
        values[escaped] = words.take(int(escaped.sum()))
        return values


def _give_up(states: Tensor, full: Tensor) -> Tensor:
    """Take the lower words from the states that are full."""
    words: Tensor = states[full] & 0xFFFF
    states[full] = states[full] >> 16
    return words
