"""The inner side of runner.py: orders come in as lines of JSON, steps go out the same way.

It runs in a peer's own environment and imports nothing of ours.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

Generate = Callable[[list[list[int]], int], Iterator[list[int]]]
"""(prompts, tokens) to, for each step, the rows of `prompts` that got a token."""


def serve(version: str, generate: Generate) -> None:
    """Say that the model is loaded, then obey until standard input ends."""
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer

    def tell(**event: Any) -> None:
        print(json.dumps(event), file=told, flush=True)

    tell(version=version)
    for line in sys.stdin:
        order = json.loads(line)
        for rows in generate(order["prompts"], order["tokens"]):
            tell(rows=rows)
        tell(done=True)
