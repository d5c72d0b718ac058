"""Recorded decode steps: one launch per GPU between two attentions."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from sps2.common.model.attend import Attend

SIZES = (1, 4, 16, 64, 256)
"""Numbers of rows that are recorded; others use the next larger one. Few, as each is recorded for
every layer; rows that nobody has cost little where a step takes as long as reading the weights."""
MOST_ROWS = SIZES[-1]

Begin = Callable[[Tensor, Tensor], tuple[Tensor, Any, tuple[Tensor, ...]]]
Advance = Callable[[Tensor, Tensor, Any], tuple[Tensor, tuple[Tensor, ...]]]


class Record(Protocol):
    """Records work; see `sps2.kernels.gpu.graphs.Graphs`."""

    def __call__(self, work: Callable[[], Any], /) -> Callable[[], Any]: ...


class Recorded:
    """Recorded decode steps of up to `MOST_ROWS` rows, with attention left out.

    Source: pieces of a model as CUDA graphs with attention between them, as in vLLM's design.

    Args:
        begin: maps ids and positions to the residual, the rotary table, and the first q, k, v.
        advance: for each layer, maps residual, attention output and table to the residual and the
            next q, k, v; the last one to the result and an empty tuple.
        attended: one row of attention output, for shape, dtype and device.
        record: records a piece of work.
    """

    def __init__(
        self, begin: Begin, advance: Sequence[Advance], attended: Tensor, record: Record
    ) -> None:
        large_first = reversed(SIZES)  # so that the smaller ones fit into the same memory
        self._sizes = {size: _Size(begin, advance, attended, size, record) for size in large_first}

    async def step(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """As `Llama.step`. One step at a time, since all steps use the same memory."""
        rows = len(ids)
        pieces = self._sizes[next(size for size in SIZES if size >= rows)]
        result, qkv = pieces.begin(ids, positions)
        for layer in range(pieces.layers):
            attended = await attend(layer, *(x[:rows] for x in qkv))
            result, qkv = pieces.advance(layer, attended)
        return result[:rows].clone()


class _Size:
    """The recorded pieces for one number of rows."""

    def __init__(
        self,
        begin: Begin,
        advance: Sequence[Advance],
        attended: Tensor,
        size: int,
        record: Record,
    ) -> None:
        self._inputs = torch.zeros(2, size, dtype=torch.int64, device=attended.device)
        self._attended = attended.new_zeros(size, *attended.shape)
        self._first = record(partial(begin, *self._inputs))
        x, table, _ = self._first()
        self._rest = [record(partial(piece, x, self._attended, table)) for piece in advance]
        self.layers = len(advance)

    def begin(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        for to, given in zip(self._inputs, (ids, positions), strict=True):
            to[: len(given)].copy_(given)
        x, _, qkv = self._first()
        return x, qkv

    def advance(self, layer: int, attended: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        self._attended[: len(attended)].copy_(attended)
        x, qkv = self._rest[layer]()
        return x, qkv
