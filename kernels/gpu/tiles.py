"""Tile sizes of attention programs: from a fixed table, or measured on this machine."""

from typing import NamedTuple

import torch

from sps2.kernels.gpu import tuned


class Tile(NamedTuple):
    """rows, keys: of one product, powers of two of at least 16. warps, stages: Triton's options."""

    rows: int
    keys: int
    warps: int
    stages: int


HOPPER = {
    128: Tile(128, 128, 8, 3),
    256: Tile(128, 128, 8, 2),
    512: Tile(128, 64, 8, 2),
    1024: Tile(32, 32, 4, 1),
}
"""Tiles by bytes of a padded row of queries."""
OLDER = {
    128: Tile(128, 64, 4, 2),
    256: Tile(64, 64, 4, 2),
    512: Tile(64, 32, 4, 1),
    1024: Tile(16, 16, 4, 1),
}
"""Tiles for devices with less than 160 KB of shared memory."""
EXACT = Tile(32, 32, 4, 2)
"""The tile for float32, which tensor cores do not multiply."""


def power(number: int, least: int = 16) -> int:
    """The next power of two, at least `least`, which products need."""
    return max(least, 1 << (number - 1).bit_length()) if number > 0 else least


def prefill(
    dim: int, dtype: torch.dtype, device: torch.device, rows: int = 128, keys: int = 128
) -> Tile:
    """The tile for many rows and many keys, no larger than these need."""
    width = max(128, power(dim) * dtype.itemsize)
    if dtype == torch.float32:
        best = EXACT if width <= 512 else OLDER[1024]
    else:
        best = (HOPPER if _roomy(device) else OLDER)[width]
    best = _measured("flash", dim, dtype, device) or best
    least = 16 if rows <= 16 else 64
    rows = min(best.rows, power(rows, min(least, best.rows)))
    warps = min(best.warps, max(4, rows // 16))
    return Tile(rows, min(best.keys, power(keys)), warps, best.stages)


def decode(dim: int, dtype: torch.dtype, device: torch.device, group: int, keys: int) -> Tile:
    """The tile for a few rows that share a KV head."""
    width = power(dim) * dtype.itemsize
    best = Tile(16, max(16, min(64, (32 << 10) // width)), 4, 3 if width <= 512 else 2)
    best = _measured("decode", dim, dtype, device) or best
    return best._replace(rows=power(group), keys=min(best.keys, power(keys)))


def shared(dim: int, dtype: torch.dtype) -> int:
    """Maximum of heads, of rows that share keys, in one tile of `decode`."""
    return max(16, min(64, (16 << 10) // (power(dim) * dtype.itemsize)))


def _measured(kernel: str, dim: int, dtype: torch.dtype, device: torch.device) -> Tile | None:
    found = tuned.table(tuned.kind(device)).get(tuned.shape(kernel, power(dim), dtype.itemsize))
    return None if found is None else Tile(*found)


def _roomy(device: torch.device) -> bool:
    """Whether the device has Hopper's amount of shared memory."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] >= 9
