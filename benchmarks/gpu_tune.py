"""Finds the fastest tiles of this GPU, among those that fit it, and keeps them for the kernels.

Only the default shape class of a model family is measured: bfloat16, head dims that models have.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from gpu_timing import DTYPE, Row, milliseconds
from torch import Tensor
from triton.runtime.errors import OutOfResources

from sps2.kernels import PagedRows, Run
from sps2.kernels.gpu import decode, flash, tiles, tuned
from sps2.kernels.gpu.tiles import Tile

DIMS = (128, 64, 256)
TOKENS, BATCH, CONTEXT = 8 << 10, 32, 8 << 10
HEADS, KV_HEADS = 32, 8
GAIN = 1.02
"""A tile must be this many times as fast as the table's: less is noise."""


def rows(device: torch.device) -> Iterator[Row]:
    """Measure; what is better than the table is kept at once."""
    kind = tuned.kind(device)
    assert kind is not None
    for dim in DIMS:
        for kernel, usual, work in _works(dim, device):
            limit = milliseconds(partial(work, usual), 7)
            best, took = _fastest(limit, work, kernel)
            if best is not None:
                tuned.keep(kind, {tuned.shape(kernel, tiles.power(dim), DTYPE.itemsize): best})
            yield {
                "kernel": kernel,
                "dim": dim,
                "table": f"{tuple(usual)} {limit:.3f} ms",
                "best": "" if best is None else f"{tuple(best)} {took:.3f} ms",
            }


def _works(dim: int, device: torch.device) -> Iterator[tuple[str, Tile, Callable[[Tile], object]]]:
    """Kernels, the tiles they have, and a launch with another."""
    group, scale, runs = HEADS // KV_HEADS, dim**-0.5, [Run(0, 0, TOKENS)]

    def random(rows: int, heads: int) -> Tensor:
        return torch.randn(heads, rows, dim, dtype=DTYPE, device=device).transpose(0, 1)

    q, k, v = random(TOKENS, HEADS), random(TOKENS, KV_HEADS), random(TOKENS, KV_HEADS)
    k_pool, v_pool = (random(BATCH * CONTEXT, KV_HEADS) for _ in range(2))
    ask = random(BATCH, HEADS)
    rows = PagedRows(
        [[Run(row * CONTEXT, 0, CONTEXT)] for row in range(BATCH)], [CONTEXT - 1] * BATCH
    )
    few = tiles.power(group)

    yield (
        "flash",
        tiles.prefill(dim, DTYPE, device),
        lambda tile: flash.attend(q, k, v, [(runs, runs)], scale, tile=tile),
    )
    yield (
        "decode",
        tiles.decode(dim, DTYPE, device, group),
        lambda tile: decode.attend(ask, k_pool, v_pool, rows, scale, tile=tile._replace(rows=few)),
    )


def _candidates(kernel: str) -> Iterator[Tile]:
    rows = {"flash": (64, 128), "decode": (16,)}[kernel]
    for tile in product(rows, (32, 64, 128), (4, 8), (1, 2, 3, 4)):
        yield Tile(*tile)


def _fastest(
    limit: float, work: Callable[[Tile], object], kernel: str
) -> tuple[Tile | None, float]:
    """The fastest tile and its time; None if no other is faster than the usual one's `limit`."""
    best, least = None, limit / GAIN
    for tile in _candidates(kernel):
        try:
            took = milliseconds(lambda tile=tile: work(tile), 7)  # type: ignore[misc]
        except OutOfResources:
            continue
        if took < least:
            best, least = tile, took
    return best, least
