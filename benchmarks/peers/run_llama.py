"""llama.cpp behind lines.py: `python run_llama.py FILE.gguf THREADS CONTEXT`.

One prompt goes through the class `Llama`, as its users have it. Several decode in one batch, for
which that class has no method, so that they go through the functions below it.
"""

import itertools
import sys
from collections.abc import Iterator

import llama_cpp
import numpy as np
from llama_cpp import Llama

from peers.lines import serve

ROOM = 64
"""Tokens of each sequence's share of the context beyond the prompt and the answer."""


class Batched:
    """Sequences that decode together, in a context of their own."""

    def __init__(self, llama: Llama, sequences: int, room: int) -> None:
        parameters = llama.context_params
        before = parameters.n_ctx, parameters.n_seq_max
        parameters.n_ctx, parameters.n_seq_max = sequences * room, sequences
        self._context = llama_cpp.llama_init_from_model(llama.model, parameters)
        parameters.n_ctx, parameters.n_seq_max = before
        if self._context is None:
            raise MemoryError(f"llama.cpp gave no context of {sequences} x {room} tokens")
        self._step = llama.n_batch
        self._batch = llama_cpp.llama_batch_init(self._step, 0, 1)
        self._vocabulary = llama.n_vocab()

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)

    def prefill(self, sequence: int, prompt: list[int]) -> int:
        """The first token of the answer."""
        for start in range(0, len(prompt), self._step):
            part = prompt[start : start + self._step]
            positions = itertools.count(start)
            self._decode([(token, next(positions), sequence) for token in part], len(part) - 1)
        return self._best(len(part) - 1)

    def decode(self, tokens: list[int], position: list[int]) -> list[int]:
        """One token more for each sequence."""
        rows = [(token, position[row], row) for row, token in enumerate(tokens)]
        self._decode(rows, 0)
        return [self._best(row) for row in range(len(tokens))]

    def _decode(self, rows: list[tuple[int, int, int]], wanted_from: int) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = index >= wanted_from
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")

    def _best(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())


def single(llama: Llama, prompt: list[int], tokens: int) -> Iterator[list[int]]:
    for _ in itertools.islice(llama.generate(prompt, temp=0), tokens):
        yield [0]


def several(llama: Llama, prompts: list[list[int]], tokens: int) -> Iterator[list[int]]:
    batched = Batched(llama, len(prompts), max(map(len, prompts)) + tokens + ROOM)
    last, position = [], [len(prompt) for prompt in prompts]
    for row, prompt in enumerate(prompts):
        last.append(batched.prefill(row, prompt))
        yield [row]
    for _ in range(tokens - 1):
        last = batched.decode(last, position)
        position = [each + 1 for each in position]
        yield list(range(len(prompts)))
    batched.close()


def main() -> None:
    file, threads, context = sys.argv[1:]
    llama = Llama(
        file,
        n_ctx=int(context),
        n_threads=int(threads),
        n_threads_batch=int(threads),
        flash_attn=True,
        verbose=False,
    )

    def generate(prompts: list[list[int]], tokens: int) -> Iterator[list[int]]:
        if len(prompts) == 1:
            return single(llama, prompts[0], tokens)
        return several(llama, prompts, tokens)

    serve(llama_cpp.__version__, generate)


if __name__ == "__main__":
    main()
