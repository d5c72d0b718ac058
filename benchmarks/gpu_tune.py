"""Finds the fastest tiles of this GPU, among those that fit it, and keeps them for the kernels.

Only the default shape class of a model family is measured: bfloat16, head dims that models have.
"""

from collections.abc import Callable, Iterator
from itertools import product

import torch
from gpu_timing import DTYPE, milliseconds
from torch import Tensor
from triton.runtime.errors import OutOfResources

from sps2.kernels import PagedRows, Run
from sps2.kernels.gpu import decode, flash, tiles, tuned
from sps2.kernels.gpu.tiles import Tile

DIMS = (64, 128, 256)
TOKENS, BATCH, CONTEXT = 8 << 10, 32, 8 << 10
HEADS, KV_HEADS = 32, 8
GAIN = 1.02
"""A tile must be this many times as fast as the table's: less is noise."""


def run(device: torch.device) -> dict[str, Tile]:
    """Measure, print, and write the file; what is better than the table."""
    kind = tuned.kind(device)
    assert kind is not None
    best: dict[str, Tile] = {}
    for dim in DIMS:
        for kernel, usual, work in _works(dim, device):
            found = _fastest(f"{kernel} {dim}", usual, work, kernel)
            if found is not None:
                best[tuned.shape(kernel, tiles.power(dim), DTYPE.itemsize)] = found
    tuned.keep(kind, best)
    print(f"\n{len(best)} tiles are better than the table: {tuned.path()}", flush=True)
    return best


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


def _fastest(name: str, usual: Tile, work: Callable[[Tile], object], kernel: str) -> Tile | None:
    """None: no other is faster than the usual one."""
    limit = milliseconds(lambda: work(usual), 7)
    best, least = None, limit / GAIN
    for tile in _candidates(kernel):
        try:
            took = milliseconds(lambda tile=tile: work(tile), 7)  # type: ignore[misc]
        except OutOfResources:
            continue
        if took < least:
            best, least = tile, took
    gain = "" if best is None else f", {tuple(best)}: {least:.3f} ms"
    print(f"{name}: {tuple(usual)}: {limit:.3f} ms{gain}", flush=True)
    return best
