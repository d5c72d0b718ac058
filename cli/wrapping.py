"""Text that comes in pieces, on a terminal: lines break between words."""

from collections.abc import Callable

from rich.cells import cell_len

ERASE = "\x1b[K"
"""Clears the line from the cursor on."""


class Wrapped:
    """Writes text at once, and takes a word back to the next line when it does not fit.

    Args:
        width: cells of a line; the last stays free. None leaves all lines as they are, as is right
            for a pipe.
    """

    def __init__(self, width: int | None, write: Callable[[str], object]) -> None:
        self._width = None if width is None else max(2, width) - 1
        self._write = write
        self._column = 0
        self._word = ""
        """What is written of the last word."""

    def add(self, text: str) -> None:
        """Take a piece of the text."""
        if self._width is None:
            self._write(text)
        else:
            self._write("".join(self._placed(character) for character in text))

    def _placed(self, character: str) -> str:
        assert self._width is not None
        if character == "\n":
            self._column, self._word = 0, ""
            return character
        cells = cell_len(character)
        fits = self._column + cells <= self._width
        if character.isspace():
            self._word = ""
            self._column = self._column + cells if fits else 0
            return character if fits else "\n"
        if cells > 1:  # as Chinese is written: without spaces
            self._word = ""
        taken = cell_len(self._word)
        if fits:
            self._word += character
            self._column += cells
            return character
        if taken == self._column:  # a word as long as the line has to be cut
            self._word, taken = "", 0
        self._word += character
        self._column = cell_len(self._word)
        return "\b" * taken + ERASE * bool(taken) + "\n" + self._word
