"""Wraps streamed text on a terminal between words."""

from collections.abc import Callable

from rich.cells import cell_len

ERASE = "\x1b[K"
"""Clears the line from the cursor on."""


class Wrapped:
    """Writes text at once, and moves a word to the next line when it does not fit.

    Args:
        width: cells of a line; the last stays free. None disables wrapping, for a pipe.
    """

    def __init__(self, width: int | None, write: Callable[[str], object]) -> None:
        self._width = None if width is None else max(2, width) - 1
        self._write = write
        self._column = 0
        self._word = ""
        """The part of the last word that is written."""

    def add(self, text: str) -> None:
        """Write a piece of the text."""
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
        cells_back = cell_len(self._word)
        if fits:
            self._word += character
            self._column += cells
            return character
        if cells_back == self._column:  # a word as long as the line has to be cut
            self._word, cells_back = "", 0
        self._word += character
        self._column = cell_len(self._word)
        return "\b" * cells_back + ERASE * bool(cells_back) + "\n" + self._word
