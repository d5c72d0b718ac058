"""A model's arithmetic for few rows, recorded: between two attentions a GPU is asked once."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from sps2.common.model.attend import Attend, Run

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Rows that are recorded; others take the next larger number."""

Begin = Callable[[Tensor, Tensor], tuple[Tensor, Any, tuple[Tensor, ...]]]
Advance = Callable[[Tensor, Tensor, Any], tuple[Tensor, tuple[Tensor, ...]]]


class Record(Protocol):
    """Records work; see `sps2.kernels.gpu.graphs.Graphs`."""

    def __call__(self, work: Callable[[], Any], /) -> Callable[[], Any]: ...


class Recorded:
    """Forwards of up to `SIZES[-1]` rows; attention stays outside, wherever keys are.

    Source: pieces of a model as CUDA graphs with attention between them, as in vLLM's design.

    Args:
        begin: from ids and positions to the residual, the rotation's table, and the first q, k, v.
        advance: for each layer, from the residual, what was attended, and the table to the
            residual and the next q, k, v; after the last, to the result and nothing.
        attended: one row of what attention gives.
        record: how.
    """

    def __init__(
        self, begin: Begin, advance: Sequence[Advance], attended: Tensor, record: Record
    ) -> None:
        self._steps = {size: Step(begin, advance, attended, size, record) for size in SIZES}

    def step_for(self, rows: int) -> "Step | None":
        """What replays a forward of so many rows; None for too many, and while another uses it."""
        step = next((self._steps[size] for size in SIZES if size >= rows > 0), None)
        return None if step is None or step.in_use else step


class Step:
    """For one number of rows, and one forward at a time: what it computes lies in one place."""

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
        x: Tensor
        x, table, _ = self._first()
        self._pieces = []
        for piece in advance:
            self._pieces.append(record(partial(piece, x, self._attended, table)))
        self._result = x
        self.in_use = False

    async def forward(self, ids: Tensor, positions: Tensor, attend: Attend, run: Run) -> Tensor:
        """As `Llama.forward`, for all rows."""
        rows, self.in_use = len(ids), True
        try:
            qkv = await run(partial(self._begin, ids, positions))
            for layer in range(len(self._pieces)):
                attended = await attend(layer, *(x[:rows] for x in qkv))
                qkv = await run(partial(self._advance, layer, attended))
            return self._result[:rows].clone()
        finally:
            self.in_use = False

    def _begin(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        for to, given in zip(self._inputs, (ids, positions), strict=True):
            to[: len(given)].copy_(given)
        qkv: tuple[Tensor, ...] = self._first()[2]
        return qkv

    def _advance(self, layer: int, attended: Tensor) -> tuple[Tensor, ...]:
        self._attended[: len(attended)].copy_(attended)
        qkv: tuple[Tensor, ...]
        self._result, qkv = self._pieces[layer]()
        return qkv
