"""Rounds blocks of keys and values to small whole numbers, for entropy coding.

One step serves all channels of a block: with an entropy coder behind it, that is the best a scalar
quantiser can do for a squared error (Gish and Pierce, "Asymptotically efficient quantizing", 1968).
Hence numbers are first scaled so that equal errors do equal harm:

- Keys before their rotation, without their mean, times the size of the queries in that channel. A
  step is then in units of a score. Keys before rotation compress better: KVQuant (arXiv
  2401.18079), section 3.1.
- Values over the root mean square of their token, which is rounded to a power of 2^(1/4). A token
  with a lot of attention often has a small value, which one step for all would wipe out.

A block of level n has steps 2^n times as fine, n from 0.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.kernels.contracts import BLOCK
from sps2.kernels.kv_quantize import blocks_of
from sps2.kernels.rows import rotate

Table = tuple[Tensor, Tensor]
"""Cosines and signed sines of positions, as for `rows.rotate`: [tokens, 1, dim] float32 each."""

LEAST = 1e-9
"""The smallest size of a token."""
PER_OCTAVE = 4
"""Steps of a token's size per factor of two."""
MOST = 32767


class Steps(NamedTuple):
    """Steps of level 0: of keys, in nats of a score; of values, in sizes of their token."""

    keys: float
    values: float


class Scaled(NamedTuple):
    """The keys and values of a rank, scaled as far as all receivers have them alike.

    keys: [kv_heads, blocks, dim, BLOCK] float32, before rotation, without their mean.
    mean: [kv_heads, dim] float16, that of the keys.
    values: [kv_heads, blocks, dim, BLOCK] float32, over their token's size.
    sizes: [kv_heads, blocks, BLOCK] int16, the logarithms of these sizes less their median.
    middle: [kv_heads] int8, that median.
    """

    keys: Tensor
    mean: Tensor
    values: Tensor
    sizes: Tensor
    middle: Tensor


def scaled(k: Tensor, v: Tensor, table: Table, skip: int = 0) -> Scaled:
    """Scale keys and values, [tokens, kv_heads, dim] each.

    Args:
        k: rotated by `table`, whose sines and cosines may have an amplitude.
        skip: tokens at the beginning that the mean leaves out, since they are unlike all others.
    """
    cosines, sines = table
    square = cosines[:1, :, :1].square() + sines[:1, :, :1].square()
    before = rotate(k.float().contiguous(), (cosines / square, -sines / square))
    mean = before[skip if skip < len(k) else 0 :].mean(0).half()
    keys = blocks_of(before.sub_(mean)).mT.contiguous()
    size = torch.linalg.vector_norm(v, dim=-1, dtype=torch.float32) / math.sqrt(v.shape[-1])
    power = (size.clamp_(LEAST, 1 / LEAST).log2_() * PER_OCTAVE).round_()
    middle = power.median(0).values
    values = blocks_of(v.float() / _size_of(power)[..., None]).mT.contiguous()
    sizes = blocks_of((power - middle)[..., None])[..., 0]
    return Scaled(keys, mean, values, sizes.to(torch.int16), middle.to(torch.int8))


def query_weight(q: Tensor, kv_heads: int, scale: float) -> Tensor:
    """How much an error in each channel of a key before rotation changes scores, in the root mean.

    Args:
        q: [rows, heads, dim], rotated; a few of the queries.

    Returns:
        [kv_heads, dim] float32; the two channels that are rotated together have the same weight.
    """
    rows, _, dim = q.shape
    energy = q.float().square().view(rows, kv_heads, -1, 2, dim // 2).mean((0, 2, 3))
    weight = energy.sqrt_().clamp_(min=1e-6) * scale
    return torch.cat((weight, weight), -1)


def to_codes(of: Scaled, kept: Tensor, levels: Tensor, weight: Tensor, steps: Steps) -> Tensor:
    """The whole numbers of some blocks: [blocks, 2 * dim + 1, BLOCK] int16.

    A block has a row for each channel of its keys, then of its values, then one of token sizes.

    Args:
        kept: [kv_heads, blocks] bool, which blocks.
        levels: [kept blocks] int64, in the order of `kept`.
        weight: [kv_heads, dim], from `query_weight`.
    """
    heads = kept.nonzero()[:, 0]
    finer = torch.exp2(levels.float())[:, None]
    dim = weight.shape[1]
    codes = torch.empty(len(heads), 2 * dim + 1, BLOCK, dtype=torch.int16, device=weight.device)
    keys = of.keys[kept].mul_((weight[heads] * (finer / steps.keys))[..., None])
    codes[:, :dim] = keys.round_().clamp_(-MOST, MOST)
    values = of.values[kept].mul_((finer / steps.values)[..., None])
    codes[:, dim : 2 * dim] = values.round_().clamp_(-MOST, MOST)
    codes[:, 2 * dim] = of.sizes[kept]
    return codes


class Offsets(NamedTuple):
    """What the codes of all blocks of a KV head share; see `Scaled`."""

    mean: Tensor
    middle: Tensor


def from_codes(
    codes: Tensor,
    kept: Tensor,
    levels: Tensor,
    weight: Tensor,
    steps: Steps,
    offsets: Offsets,
    table: Table,
) -> tuple[Tensor, Tensor]:
    """Undo `to_codes`, exact to half a step: rotated keys and values [blocks, BLOCK, dim], float32.

    Args:
        table: of all tokens that the sender has.
    """
    heads, blocks = kept.nonzero().unbind(1)
    coarser = torch.exp2(-levels.float())[:, None]
    dim = weight.shape[1]
    keys = codes[:, :dim].float().mul_((steps.keys * coarser / weight[heads])[..., None])
    keys = keys.add_(offsets.mean.float()[heads][..., None]).mT.contiguous()
    power = codes[:, 2 * dim].float() + offsets.middle.float()[heads][:, None]
    size = _size_of(power)[:, None] * (steps.values * coarser)[..., None]
    values = codes[:, dim : 2 * dim].float().mul_(size).mT.contiguous()
    tokens = (blocks[:, None] * BLOCK + torch.arange(BLOCK, device=blocks.device)).flatten()
    cosines, sines = (side[tokens] for side in table)
    return rotate(keys.view(-1, 1, dim), (cosines, sines)).view_as(keys), values


def _size_of(power: Tensor) -> Tensor:
    return torch.exp2(power / PER_OCTAVE)
