"""How fast a shard computes the products of its model: a short run of its first layers."""

from functools import partial

import torch
from torch import Tensor

from sps2.common.device import Device, Mark
from sps2.common.model.attend import Run
from sps2.common.model.llama import Llama

LAYERS = 2
FIRST_ROWS = 32
LONG_S = 0.05
"""Rows are doubled until a run takes so long, or until they are as many as pass at once."""
WHOLE_S = 0.25
"""How long runs are repeated: longer than the periods in which a host limits a container's time."""


async def own_gflops(model: Llama, device: Device, run: Run) -> float:
    """GFLOP/s of a shard's matrix products; of all its processes, if each is as fast as this one.

    Args:
        run: runs the arithmetic.
    """
    few, most_rows = model.shallow(LAYERS), model.most_rows
    rows, took_s = FIRST_ROWS, 0.0
    await _took_s(few, device, run, rows)  # compiles, and warms caches
    while (took_s := await _took_s(few, device, run, rows)) < LONG_S and rows < most_rows:
        rows = min(2 * rows, most_rows)
        await _took_s(few, device, run, rows)
    runs = 1
    while took_s < WHOLE_S:
        took_s += await _took_s(few, device, run, rows)
        runs += 1
    return 2e-9 * few.config.products * model.share.size * rows * runs / took_s


async def _took_s(few: Llama, device: Device, run: Run, rows: int) -> float:
    """Seconds of a forward of so many rows, without attention."""
    ids, positions = device.up((torch.zeros(rows).long(), torch.arange(rows)))
    start = await run(device.mark)
    await few.forward(ids, positions, _no_attention, run)
    stop = await run(device.mark)
    return await run(partial(_between, start, stop))


def _between(start: Mark, stop: Mark) -> float:
    return stop() - start()


async def _no_attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q
