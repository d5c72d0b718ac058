"""Streams an answer to standard output, and then prints one line with its figures."""

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sps2.cli import render
from sps2.cli.wrapping import Wrapped

if TYPE_CHECKING:
    from sps2.common.api import ChatChunk, CompletionChunk
    from sps2.common.api.usage import Usage


class Shown:
    """Prints the pieces of an answer; `text` is what has come so far.

    Args:
        limit: the requested maximum of tokens of the answer, if any.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.text = ""
        self._limit = limit
        self._is_cut = False
        self._thinks = False
        self._out = Wrapped(render.out.width if render.out.is_terminal else None, sys.stdout.write)
        self._first_s: float | None = None
        self._last_s = 0.0
        self._usage: Usage | None = None

    def take(self, chunk: "CompletionChunk | ChatChunk", pieces: Iterable[str]) -> None:
        """Print a chunk's part of the answer."""
        for piece in filter(None, pieces):
            self._tick()
            if self._thinks:
                self._thinks = False
                render.err.print("\n")
            self.text += piece
            self._out.add(piece)
        sys.stdout.flush()
        self._is_cut |= any(choice.finish_reason == "length" for choice in chunk.choices)
        self._usage = chunk.usage or self._usage

    def think(self, pieces: Iterable[str]) -> None:
        """Print what the model thinks before it answers, on stderr: it is no part of the text."""
        for piece in filter(None, pieces):
            self._tick()
            self._thinks = True
            render.err.print(piece, style="dim", end="", markup=False, soft_wrap=True)

    def _tick(self) -> None:
        self._last_s = time.monotonic()
        self._first_s = self._first_s or self._last_s

    def end(self, note: str = "") -> None:
        """End the text, and print its figures on stderr if that is a terminal."""
        print(note)
        if self._usage is not None and render.err.is_terminal:
            seconds = self._last_s - (self._first_s or 0.0)
            said = summary(self._usage, seconds) + (cut(self._usage, self._limit) * self._is_cut)
            render.err.print(said, style="dim", markup=False)


def summary(usage: "Usage", seconds: float) -> str:
    """Lengths of prompt and answer, and the speed, in words.

    Args:
        seconds: from the first piece of the answer to the last.
    """
    cached = usage.prompt_tokens_details.cached_tokens
    prompt = f"prompt {render.counted(usage.prompt_tokens, 'token')}"
    prompt += f" ({cached:,} cached)" if cached else ""
    answer = f"answer {render.counted(usage.completion_tokens, 'token')}"
    if usage.completion_tokens > 1 and seconds > 0:
        answer += f" at {(usage.completion_tokens - 1) / seconds:.3g} tokens/s"
    first = "" if usage.sps2 is None else f", first after {usage.sps2.ttft_ms / 1000:.2f} s"
    return f"{prompt}; {answer}{first}"


def cut(usage: "Usage", limit: int | None) -> str:
    """The addition to the summary for an answer that its limit of tokens ended."""
    option = " (-n)" if usage.completion_tokens == limit else ""
    return f"; cut at {render.counted(usage.completion_tokens, 'token')}{option}"
