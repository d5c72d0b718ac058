"""Tiles measured on a kind of device, in a file; where it has none, the fixed table serves.

The file is `~/.cache/sps2/tiles.json`, or `$SPS2_HOME/tiles.json`: {device, Triton's version:
{kernel, head dim, bytes of a number: [rows, keys, warps, stages]}}. `make bench-gpu` writes it,
nothing is ever tuned while serving. It is read once by a process.
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
    """Where the file lies."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("SPS2_HOME") or caches / "sps2") / "tiles.json"


@cache
def kind(device: torch.device) -> str | None:
    """What a tile was measured on; None is no GPU."""
    if device.type != "cuda":
        return None
    return f"{torch.cuda.get_device_name(device)}, Triton {triton.__version__}"


def shape(kernel: str, padded: int, itemsize: int) -> str:
    """The class of shapes that share a tile."""
    return f"{kernel}, {padded}, {itemsize}"


@cache
def table(kind: str | None) -> Table:
    """What was measured on that kind of device; a broken file counts as none, and is logged."""
    if kind is None:
        return {}
    try:
        found = json.loads(path().read_bytes()).get(kind, {})
        return {name: _checked(name, tile) for name, tile in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("%s is not used, `make bench-gpu` makes it anew: %s", path(), error)
        return {}


def keep(kind: str, measured: Table) -> None:
    """Put what was measured into the file, beside what is there of other devices and shapes."""
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
