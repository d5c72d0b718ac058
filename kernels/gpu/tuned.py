"""A file of tiles that were measured, by device; without an entry the fixed table is used.

The file is `~/.cache/sps2/tiles.json`, or `$SPS2_HOME/tiles.json`: {device, Triton's version:
{kernel, head dim, bytes of a number: [rows, keys, warps, stages]}}. `make bench-gpu` writes it;
nothing is tuned while serving. A process reads it once.
"""

import json
import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
import triton

Table = Mapping[str, tuple[int, int, int, int]]

log = logging.getLogger(__name__)


def path() -> Path:
    """The path of the file."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("SPS2_HOME") or caches / "sps2") / "tiles.json"


@cache
def kind(device: torch.device) -> str | None:
    """The kind of device that tiles are measured on; None if it is not a GPU."""
    if device.type != "cuda":
        return None
    return f"{torch.cuda.get_device_name(device)}, Triton {triton.__version__}"


def shape(kernel: str, padded: int, itemsize: int) -> str:
    """The key of the shapes that share a tile."""
    return f"{kernel}, {padded}, {itemsize}"


@cache
def table(kind: str | None) -> Table:
    """The tiles of a kind of device; a broken file is logged and ignored."""
    if kind is None:
        return {}
    try:
        found = json.loads(path().read_bytes()).get(kind, {})
        return {name: _checked(name, tile) for name, tile in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("%s is not used; `make bench-gpu` writes a new one: %s", path(), error)
        return {}


def keep(kind: str, measured: Table) -> None:
    """Add measured tiles to the file, keeping those of other devices and shapes."""
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        known = json.loads(target.read_bytes())
    except (OSError, ValueError):
        known = {}
    whole = known if isinstance(known, dict) else {}
    whole[kind] = dict(table(kind)) | dict(measured)
    beside = target.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    beside.replace(target)
    table.cache_clear()


def _checked(name: str, tile: object) -> tuple[int, int, int, int]:
    if not (isinstance(tile, list) and len(tile) == 4 and all(type(x) is int for x in tile)):
        raise ValueError(f"{name!r} is {tile!r}, not [rows, keys, warps, stages]")
    rows, keys, warps, stages = tile
    powers = all(x > 0 and x & (x - 1) == 0 for x in (rows, keys, warps))
    if not powers or not (16 <= rows <= 256 and 16 <= keys <= 256 and warps <= 16):
        raise ValueError(f"{name!r} has rows, keys or warps of {rows}, {keys}, {warps}")
    if not 1 <= stages <= 8:
        raise ValueError(f"{name!r} has {stages} stages")
    return rows, keys, warps, stages
