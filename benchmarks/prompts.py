"""Prompts of real text that never begin alike."""

import importlib
import inspect
import random

from sps2.common.text.tokens import Tokenizer

SOURCES = ("argparse", "doctest", "inspect", "tarfile", "typing", "zipfile")
"""Modules of Python's, which have long docstrings."""
PASSAGE_TOKENS = 64


class Prompts:
    """Shuffled passages of text: always the same prompt for one name and length."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        modules = map(importlib.import_module, SOURCES)
        self.encode = tokenizer.encode
        self._text = tokenizer.encode("".join(map(inspect.getsource, modules)))

    def make(self, tokens: int, *name: object) -> list[int]:
        """Token ids, drawn by `name`."""
        draw = random.Random(repr((tokens, name)))
        prompt: list[int] = []
        while len(prompt) < tokens:
            start = draw.randrange(len(self._text) - PASSAGE_TOKENS)
            prompt += self._text[start : start + PASSAGE_TOKENS]
        return prompt[:tokens]
