"""Changes valid inputs, by dice: bytes, texts, and values such as JSON and MessagePack have."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

INTEGERS = (
    *(0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 100, 127, 128, 255, 256, 1000, 4095, 4096, 8193),
    *(1 << 15, (1 << 16) - 1, 1 << 16, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1),
    *(1 << 32, 1 << 40, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
NUMBERS = (*INTEGERS, *(-each for each in INTEGERS), 0.5, -0.0, 1e-320, 1e18, 1e308, -1e308)
TEXTS = (
    *(
        "",
        " ",
        "\n",
        "\x00",
        "a",
        "true",
        "null",
        "0",
        "-1",
        "1e999",
        "NaN",
        "..",
        "../..",
        "/",
        "\\",
    ),
    *(
        "\u00e9",
        "\u4f60\u597d",
        "\U0001f600",
        "\u202e",
        "\ufeff",
        "\u2028",
        "\ufffd",
        "\u0130",
        "\u00df",
    ),
    *("%s", "{}", "{{ x }}", "{% for", "<|end|>", '"', "'", "a" * 300, "a" * 70_000, "[" * 3000),
)
DEPTHS = (3, 100, 1100, 20_000)
MOST_BYTES = 4 << 20
"""Inputs do not become larger: what is too large is refused elsewhere."""


def changed(dice: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """One to four changes of some bytes.

    Args:
        others: inputs from which pieces may be taken over.
    """
    for _ in range(dice.choice((1, 1, 1, 2, 2, 3, 4))):
        data = dice.choice(CHANGES)(dice, data) if data else dice.randbytes(dice.randint(0, 40))
        if others and dice.random() < 0.1:
            data = _spliced(dice, data, dice.choice(others))
    return data[:MOST_BYTES]


def _place(dice: random.Random, data: bytes) -> int:
    """A place in an input; the beginning, where headers are, more often."""
    most = len(data)
    if dice.random() < 0.5:
        most = min(most, dice.choice((8, 32, 128, 512)))
    return dice.randrange(most + 1)


def _span(dice: random.Random, data: bytes) -> slice:
    start = _place(dice, data)
    return slice(start, start + dice.choice((1, 2, 4, 8, dice.randint(1, 64), len(data))))


def _flipped(dice: random.Random, data: bytes) -> bytes:
    place = min(_place(dice, data), len(data) - 1)
    return data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]


def _set(dice: random.Random, data: bytes) -> bytes:
    place = min(_place(dice, data), len(data) - 1)
    value = dice.choice((0, 1, 9, 10, 13, 32, 34, 92, 127, 128, 192, 255, dice.randrange(256)))
    return data[:place] + bytes([value]) + data[place + 1 :]


def _cut(dice: random.Random, data: bytes) -> bytes:
    return data[: _place(dice, data)] if dice.random() < 0.8 else data[_place(dice, data) :]


def _without(dice: random.Random, data: bytes) -> bytes:
    span = _span(dice, data)
    return data[: span.start] + data[span.stop :]


def _doubled(dice: random.Random, data: bytes) -> bytes:
    span = _span(dice, data)
    piece = data[span]
    times = dice.choice((1, 1, 2, 10, 1000 if len(piece) < 1000 else 1))
    return data[: span.stop] + piece * times + data[span.stop :]


def _inserted(dice: random.Random, data: bytes) -> bytes:
    place = _place(dice, data)
    new = dice.choice((dice.randbytes(dice.randint(1, 16)), dice.choice(TEXTS).encode()))
    return data[:place] + new + data[place:]


def _number(dice: random.Random, data: bytes) -> bytes:
    """Overwrite a number of 1 to 8 bytes: a length, a count, an offset."""
    size = dice.choice((1, 2, 4, 4, 8, 8))
    place = _place(dice, data)
    if dice.random() < 0.7:
        place -= place % size
    value = dice.choice(INTEGERS) & ((1 << 8 * size) - 1)
    order = dice.choice(("little", "little", "big"))
    return data[:place] + value.to_bytes(size, order) + data[place + size :]  # type: ignore[arg-type]


def _swapped(dice: random.Random, data: bytes) -> bytes:
    first, second = sorted((_place(dice, data), _place(dice, data)))
    size = dice.randint(1, max(1, min(64, second - first)))
    rest = data[first + size : second]
    return data[:first] + data[second : second + size] + rest + data[first : first + size]


def _spliced(dice: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: _place(dice, data)] + other[_place(dice, other) :]


CHANGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    *(_flipped, _flipped, _set, _cut, _without, _doubled, _inserted, _number, _number, _swapped),
)


def changed_value(dice: random.Random, value: Any, *, binary: bool = False) -> Any:
    """A value of lists, dictionaries and scalars with one to four changes in it.

    Args:
        binary: whether there may be bytes and keys that are no texts, as in MessagePack.
    """
    for _ in range(dice.choice((1, 1, 1, 2, 3, 4))):
        value = _inside(dice, value, binary)
    return value


def _inside(dice: random.Random, value: Any, binary: bool) -> Any:
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key = dice.choice(list(value))
        others = dict(value)
        how = dice.random()
        if how < 0.1:
            del others[key]
        elif how < 0.15:
            new = dice.choice((dice.choice(TEXTS), dice.choice(NUMBERS) if binary else "b"))
            others[new] = others[key]
        elif how < 0.2:
            others[key] = others[dice.choice(list(value))]
        else:
            others[key] = _inside(dice, others[key], binary)
        return others
    if isinstance(value, list | tuple) and value and dice.random() < 0.85:
        items = list(value)
        place = dice.randrange(len(items))
        how = dice.random()
        if how < 0.1:
            del items[place]
        elif how < 0.2:
            items[place:place] = items[place : place + 1] * dice.choice((1, 2, 1000))
        elif how < 0.25:
            items.reverse()
        else:
            items[place] = _inside(dice, items[place], binary)
        return items
    return strange(dice, binary, value)


def strange(dice: random.Random, binary: bool = False, value: Any = None) -> Any:
    """A value that nobody expects there; near `value` now and then."""
    if isinstance(value, bytes) and dice.random() < 0.7:
        return changed(dice, value)
    if isinstance(value, str) and dice.random() < 0.5:
        return changed(dice, value.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
    if isinstance(value, int | float) and dice.random() < 0.6:
        return dice.choice(NUMBERS)
    kind = dice.randrange(10)
    if kind < 3:
        return dice.choice(NUMBERS)
    if kind < 5:
        return dice.choice(TEXTS)
    if kind == 5 and binary:
        return dice.randbytes(dice.choice((0, 1, 16, 300)))
    if kind == 6 and dice.random() < 0.3:
        return nested(dice)
    plain: list[Any] = [None, True, False, [], {}, [None], {"a": 1}, [[]], [{}], [0] * 2000]
    return dice.choice(plain)


def nested(dice: random.Random) -> Any:
    """Lists or dictionaries in each other, not too deep for an encoder."""
    value: Any = 1
    as_list = dice.random() < 0.5
    for _ in range(dice.choice((3, 50, 150))):
        value = [value] if as_list else {"a": value}
    return value


def packed(value: Any) -> bytes:
    """A value as MessagePack, with integers cut to its 64 bits."""
    data: bytes = msgpack.packb(_within(value))
    return data


def _within(value: Any) -> Any:
    if isinstance(value, dict):
        return {_within(key): _within(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_within(each) for each in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-(1 << 63), min((1 << 64) - 1, value))
    return value


def deep(dice: random.Random) -> bytes:
    """Text that nests deeper than parsers follow."""
    depth = dice.choice(DEPTHS)
    opened, closed = dice.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"(", b")")))
    return opened * depth + (closed * depth if dice.random() < 0.5 else b"")
