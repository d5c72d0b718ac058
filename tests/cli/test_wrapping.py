"""Lines of an answer break between words, however its pieces were cut."""

import pyte
import pytest

from sps2.cli.wrapping import Wrapped


def shown(text: str, size: int) -> list[str]:
    """What a terminal shows that has nine cells in a line, of which the last stays free."""
    screen = pyte.Screen(9, 10)
    stream = pyte.Stream(screen)
    wrapped = Wrapped(9, lambda piece: stream.feed(piece.replace("\n", "\r\n")))
    for start in range(0, len(text), size):
        wrapped.add(text[start : start + size])
    lines = [row.rstrip() for row in screen.display]
    return lines[: len(lines) - lines[::-1].index(next(filter(None, lines[::-1]), ""))]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one two three", ["one two", "three"]),
        ("  if x: y", ["  if x:", "y"]),
        ("a longer-than-line b", ["a", "longer-t", "han-line", "b"]),
        ("one\n\ntwo three", ["one", "", "two", "three"]),
        ("12345678 9", ["12345678", "9"]),
        ("1234 678 9", ["1234 678", "9"]),
        ("地球是圆的吗", ["地球是圆", "的吗"]),
    ],
)
def test_lines_of_eight_cells(text: str, lines: list[str], size: int) -> None:
    assert shown(text, size) == lines


def test_nothing_is_held_back() -> None:
    assert shown("Its lo", 2) == ["Its lo"]
    assert shown("Its long t", 2) == ["Its long", "t"]


def test_a_pipe_gets_the_text_as_it_is() -> None:
    pieces: list[str] = []
    wrapped = Wrapped(None, pieces.append)
    text = "words " * 100 + " \n end "
    wrapped.add(text)
    assert "".join(pieces) == text
