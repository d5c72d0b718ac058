"""What terminals send for keys."""

import pytest

from sps2.cli.top.keys import names


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"q", ["q"]),
        (b"jjk", ["j", "j", "k"]),
        (b"\x1b[A\x1b[B", ["up", "down"]),
        (b"\x1bOA", ["up"]),
        (b"\x1b[5~x", ["pageup", "x"]),
        (b"\x1b", ["escape"]),
        (b"\r\n", ["enter", "enter"]),
        (b"\x7f\x08", ["backspace", "backspace"]),
        (b"\x1b[1;5Cq", ["q"]),  # Ctrl-right means nothing here
        (b"\x1b[", []),
        (b"\x1bx", []),
        ("ä€".encode(), ["ä", "€"]),
        (b"\xff\x00\x01a", ["a"]),
        (b"", []),
    ],
)
def test_names(data: bytes, found: list[str]) -> None:
    assert names(data) == found
