"""Tile sizes of attention programs: from a fixed table, or measured on this machine.

The table has a column for devices with much shared memory per program (A100 and RTX have little
more than half of what H100 and B200 have, whatever their compute capability says). If a tile does
not fit after all, `launch` takes the next smaller one.
"""

import logging
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from triton.runtime import driver
from triton.runtime.errors import OutOfResources

from sps2.kernels.gpu import tuned

log = logging.getLogger(__name__)


class Tile(NamedTuple):
    """rows, keys: of one product, powers of two of at least 16. warps, stages: Triton's options."""

    rows: int
    keys: int
    warps: int
    stages: int

    def smaller(self) -> "Tile | None":
        """A tile with the same rows that needs less shared memory; None if there is none."""
        if self.stages > 1:
            return self._replace(stages=self.stages - 1)
        return self._replace(keys=self.keys // 2) if self.keys > 16 else None


ROOMY = {
    128: Tile(128, 128, 8, 3),
    256: Tile(128, 64, 8, 3),
    512: Tile(128, 64, 8, 2),
    1024: Tile(32, 32, 4, 1),
}
"""Tiles by bytes of a padded row of queries. Those of 256 bytes (head dim 128) are the largest that
compile with few or no registers spilled to memory; see docs/gpu.md."""
NARROW = {
    128: Tile(128, 64, 4, 2),
    256: Tile(64, 64, 8, 2),
    512: Tile(64, 32, 4, 1),
    1024: Tile(16, 16, 4, 1),
}
"""Tiles for devices with less shared memory than `MUCH_BYTES`."""
MUCH_BYTES = 200 << 10
EXACT = Tile(32, 32, 4, 2)
"""The tile for float32, which tensor cores do not multiply."""

_fitting: dict[tuple[Hashable, Tile], Tile] = {}
"""What fits in place of a tile that did not."""


def power(number: int, least: int = 16) -> int:
    """The next power of two, at least `least`, which products need."""
    return max(least, 1 << (number - 1).bit_length()) if number > 0 else least


def prefill(dim: int, dtype: torch.dtype, device: torch.device, rows: int = 128) -> Tile:
    """The tile for many keys and this number of rows, with no more rows than these need."""
    width = max(128, power(dim) * dtype.itemsize)
    if dtype == torch.float32:
        best = EXACT if width <= 512 else NARROW[1024]
    else:
        best = (ROOMY if shared_bytes(device) >= MUCH_BYTES else NARROW)[width]
    best = _measured("flash", dim, dtype, device) or best
    rows = min(best.rows, 16 if rows <= 16 else 64 if rows <= 64 else best.rows)
    return best._replace(rows=rows, warps=min(best.warps, max(4, rows // 8)))


def decode(dim: int, dtype: torch.dtype, device: torch.device, group: int) -> Tile:
    """The tile for a few rows that share a KV head."""
    width = power(dim) * dtype.itemsize
    keys = max(16, min(64, (32 << 10) // width))
    room = (shared_bytes(device) - (16 << 10)) // (2 * keys * width)
    best = Tile(16, keys, 4, max(1, min(room, 3 if width <= 512 else 2)))
    best = _measured("decode", dim, dtype, device) or best
    return best._replace(rows=power(group))


def shared(dim: int, dtype: torch.dtype) -> int:
    """Maximum of heads, of rows that share keys, in one tile of `decode`."""
    return max(16, min(64, (16 << 10) // (power(dim) * dtype.itemsize)))


def launch(kernel: Hashable, tile: Tile, work: Callable[[Tile], object]) -> None:
    """Launch `work` with a tile, or with the largest smaller one that fits this device.

    Args:
        kernel: what the tile is for; what did not fit it once is not tried again.

    Raises:
        OutOfResources: no tile fits.
    """
    fitting: Tile | None = _fitting.get((kernel, tile), tile)
    while fitting is not None:
        try:
            work(fitting)
        except OutOfResources as error:
            smaller = fitting.smaller()
            if smaller is None:
                raise
            log.warning("tile %s of %s does not fit this GPU: %s", tuple(fitting), kernel, error)
            fitting = _fitting[kernel, tile] = smaller
        else:
            return


def shared_bytes(device: torch.device) -> int:
    """Shared memory that one program can have, as Triton's driver reports it."""
    if device.type != "cuda":
        return MUCH_BYTES
    return int(driver.active.utils.get_device_properties(device.index or 0)["max_shared_mem"])


def _measured(kernel: str, dim: int, dtype: torch.dtype, device: torch.device) -> Tile | None:
    found = tuned.table(tuned.kind(device)).get(tuned.shape(kernel, power(dim), dtype.itemsize))
    return None if found is None else Tile(*found)
