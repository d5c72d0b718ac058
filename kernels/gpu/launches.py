"""Every launch that a shard of a model makes, in all variants that Triton compiles separately.

Shards make them once at start, so that nothing is compiled while requests wait; the table of
docs/gpu.md is made of the same list. Sizes that change while serving specialise no kernel
(`do_not_specialize`), so that the list is finite.
"""

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from sps2.kernels.contracts import BLOCK, Bits, Choices
from sps2.kernels.gpu import (
    append,
    csa_scores,
    decode,
    flash,
    kv_quantize,
    merge,
    packed,
    rows,
    sample,
)
from sps2.kernels.gpu.tiles import Tile
from sps2.kernels.relay import LEAST, PagedRows
from sps2.kernels.state import Run, Scales, State

Launch = Callable[[], object]

log = logging.getLogger(__name__)


class Model(NamedTuple):
    """What the launches of a shard process depend on: its share of a model, and its pool.

    inner: of the gate and up products. windowed: whether layers have a sliding window, for each
    kind of layers. eight_bits: whether the pool is int8. normed: whether q and k are normalised.
    """

    heads: int
    kv_heads: int
    dim: int
    hidden: int
    inner: int
    dtype: torch.dtype
    windowed: tuple[bool, ...] = (False,)
    eight_bits: bool = False
    normed: bool = False


def launch_all(model: Model, device: torch.device) -> tuple[int, float]:
    """Launch everything once, compiling what is not in Triton's cache; launches, and seconds."""
    begun_s, count = time.monotonic(), 0
    for launch in launches(model, device):
        launch()
        count += 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return count, time.monotonic() - begun_s


def log_later_ones() -> None:
    """From now on, log a warning when a kernel is compiled: somebody waits for it."""

    def compiled(*, fn: Any, **_: object) -> None:
        log.warning("kernel %s was compiled while serving, in a variant not foreseen", fn.name)

    triton.knobs.runtime.jit_post_compile_hook = compiled


def launches(model: Model, device: torch.device) -> Iterator[Launch]:
    """All launches, with small tensors on `device`."""
    yield from prompts(model, device)
    yield from decoding(model, device)
    yield from _merges(model, device)
    yield from _layers(model, device)
    yield from _csa(model, device)


def _random(model: Model, device: torch.device, n: int, heads: int) -> Tensor:
    return torch.zeros(n, heads, model.dim, dtype=model.dtype, device=device)


def _pool(model: Model, device: torch.device, slots: int) -> tuple[Tensor, Scales | None]:
    """One layer's keys as a pool has them, which may be its values too."""
    dtype = torch.int8 if model.eight_bits else model.dtype
    pool = torch.zeros(model.kv_heads, slots, model.dim, dtype=dtype, device=device)
    by = torch.ones(model.kv_heads, slots, device=device).T
    return pool.transpose(0, 1), (by, by) if model.eight_bits else None


def _counts(tile_of: Callable[[int], object], most: int = 256) -> Iterator[int]:
    """Numbers of rows that take different tiles."""
    seen = []
    count = 1
    while count <= most:
        if (tile := tile_of(count)) not in seen:
            seen.append(tile)
            yield count
        count *= 2


def prompts(model: Model, device: torch.device) -> Iterator[Launch]:
    """Attention of prompts, the largest tiles last."""
    group = model.heads // model.kv_heads
    keys: list[tuple[Tensor, Scales | None]] = [(_random(model, device, 64, model.kv_heads), None)]
    if model.eight_bits:
        keys.append(_pool(model, device, 64))

    def tile_of(n: int) -> tuple[Tile, int]:
        return flash.tile_of(_random(model, device, n, model.heads), group)

    for n in _counts(tile_of):
        q = _random(model, device, n, model.heads)
        for k, scales in keys:
            for windowed in model.windowed:
                parts = [([Run(0, 64, n)], [Run(0, 0, 64)])]
                about = model.dim**-0.5, 32 if windowed else None
                yield partial(flash.attend, q, k, k, parts, *about, scales=scales)


def decoding(model: Model, device: torch.device) -> Iterator[Launch]:
    """Of rows that share a prefix and have a key each of their own, the largest tiles last."""
    group = model.heads // model.kv_heads
    most = decode.together(model.dim, model.dtype, group)
    k, scales = _pool(model, device, LEAST + 2 * most)
    count = 1
    while count <= most:
        q = _random(model, device, count, model.heads)
        runs = [[Run(0, 0, LEAST), Run(LEAST + row, LEAST, 1)] for row in range(count)]
        batch = PagedRows(runs, [LEAST] * count)
        yield partial(decode.attend, q, k, k, batch, model.dim**-0.5, None, scales)
        count *= 2


def _merges(model: Model, device: torch.device) -> Iterator[Launch]:
    out = torch.zeros(2, model.heads, model.dim, device=device)
    whole = State(out, torch.zeros(2, model.heads, device=device))
    for more in (whole, State(out.to(model.dtype), whole.lse)):
        yield partial(merge.merge_many, [whole, more])


def _layers(model: Model, device: torch.device) -> Iterator[Launch]:
    dim, dtype = model.dim, model.dtype
    x = torch.zeros(2, model.hidden, device=device)
    weight = torch.zeros(model.hidden, dtype=dtype, device=device)
    fed = x.to(dtype)
    yield partial(rows.add_norm, x, None, weight, 1e-5)
    yield partial(rows.add_norm, x, fed, weight, 1e-5)
    gate = torch.zeros(2, model.inner, dtype=dtype, device=device)
    yield partial(rows.swiglu, gate, gate)
    side = torch.zeros(2, 1, dim, dtype=dtype, device=device)
    for heads in {model.heads, model.kv_heads}:
        y = _random(model, device, 2, heads)
        yield partial(rows.rotate, y, (side, side))
    if model.normed:
        yield partial(rows.add_norm, side[:, 0], None, side[0, 0], 1e-5)
    k = _random(model, device, 2, model.kv_heads)
    pool, scales = _pool(model, device, 64)
    slots = torch.arange(2, device=device)
    yield partial(append.append, k, k, pool, pool, slots, scales)
    one = torch.ones(1, device=device)
    choices = Choices(one, one, one.int(), one, one.double())
    yield partial(sample.sample, torch.zeros(1, 8, device=device), choices)


def _csa(model: Model, device: torch.device) -> Iterator[Launch]:
    if model.windowed == (True,) or model.dim % 2:
        return  # exchanged whole
    group, scale = model.heads // model.kv_heads, model.dim**-0.5
    k = _random(model, device, BLOCK, model.kv_heads)

    def scored(n: int) -> Tile:
        return csa_scores.tile_of(_random(model, device, n, model.heads), group)

    for n in _counts(scored):
        q = _random(model, device, n, model.heads)
        at = torch.arange(n, device=device)
        for positions in (None, at):
            yield partial(csa_scores.score, q, k, scale, positions)
    which = torch.ones(model.kv_heads, 1, dtype=torch.bool, device=device)
    one = torch.tensor([0, 1], device=device)
    bits: Bits
    for bits in (8, 4):
        made, _ = kv_quantize.pack_all_on_device(k, k, which, bits)
        yield partial(kv_quantize.pack_all_on_device, k, k, which, bits)
        yield partial(kv_quantize.unpack, made, model.dtype)
        first = type(made)(*(each[:1] for each in made))
        for n in _counts(lambda n: packed.tile_of(_random(model, device, n, group))):
            q = _random(model, device, n, model.heads)[:, :group]
            yield partial(packed.attend, q, first, one, scale)
