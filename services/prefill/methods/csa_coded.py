"""Blocks as CSA sends them over slow links: rounded by importance, and entropy-coded."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.common.errors import Internal
from sps2.common.model.rope import Rotary
from sps2.common.transport.expected import Like
from sps2.kernels.coded_blocks import (
    Offsets,
    Scaled,
    Steps,
    from_codes,
    query_weight,
    scaled,
    to_codes,
)
from sps2.kernels.coded_streams import LEVELS, read, write
from sps2.kernels.contracts import BLOCK
from sps2.kernels.csa_scores import Blocks, Plain
from sps2.services.prefill.group import Group

PER_LEVEL = 4.0
"""Factor of importance from one level to the next."""


class Made(NamedTuple):
    """The numbers of the blocks for one consumer, and what all of them share."""

    codes: Tensor
    offsets: Offsets


class CodedForm:
    """The `Form` of blocks whose numbers are rounded the finer the more important the block is.

    Both sides derive the weights of the keys' channels from the consumer's probes.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        selection = group.scheme.selection
        assert selection is not None
        assert selection.steps is not None
        self._drop = selection.drop
        self._steps = Steps(*selection.steps)
        self._table = cache(self._rotation)
        self._rotary = Rotary(group.config.rope, group.config.head_dim)

    def levels(self, layer: int, kept: Tensor, worth: Tensor) -> Tensor:
        least = max(self._drop[layer], 1e-9)
        levels = (worth / least).log2_().div_(math.log2(PER_LEVEL)).floor_()
        return levels.clamp_(0, LEVELS - 1).add_(1).to(torch.uint8).mul_(kept)

    def sender(self, k: Tensor, v: Tensor) -> Callable[[Tensor, Tensor], Made]:
        config = self._group.config
        first = BLOCK if self._group.rank == 0 else 0
        once = cache(lambda: scaled(k, v, self._table(self._group.rank), first))

        def made(levels: Tensor, probes: Tensor) -> Made:
            of: Scaled = once()
            kept = levels > 0
            weight = query_weight(probes, config.kv_heads, config.scale)
            fineness = levels[kept].long() - 1
            codes = to_codes(of, kept, fineness, weight, self._steps)
            return Made(codes, Offsets(of.mean, of.middle))

        return made

    async def carried(self, layer: int, made: Made, levels: Tensor) -> tuple[Tensor, ...]:
        codes, mean, middle = await self._group.down(made.codes, *made.offsets)
        heads, fineness = _placed(levels)
        work = partial(write, codes, heads, fineness, len(levels))
        tables, data = await self._group.compute(work, layer)
        return mean, middle, tables, data

    def like(self, levels: Tensor, dtype: torch.dtype) -> tuple[Like, ...]:
        kv_heads, dim = self._group.config.kv_heads, self._group.config.head_dim
        return (
            Like(torch.float16, (kv_heads, dim)),
            Like(torch.int8, (kv_heads,)),
            Like(torch.uint8, (kv_heads, 2 * dim + 1)),
            Like(torch.uint8, (None,)),
        )

    async def blocks(
        self, layer: int, owner: int, levels: Tensor, carried: tuple[Tensor, ...], probes: Tensor
    ) -> list[list[Blocks]]:
        group, config = self._group, self._group.config
        mean, middle, tables, data = carried
        heads, fineness = _placed(levels)
        try:
            codes = await group.compute(partial(read, data, tables, heads, fineness), layer)
        except ValueError as error:
            name = group.name_of(owner)
            raise Internal(f"damaged keys and values came from {name}: {error}") from error
        codes, kept, fineness, *offsets = group.up(codes, levels > 0, fineness, mean, middle)

        def restored() -> list[list[Blocks]]:
            weight = query_weight(probes, config.kv_heads, config.scale)
            table = self._table(owner)
            both = from_codes(codes, kept, fineness, weight, self._steps, Offsets(*offsets), table)
            counts = (levels > 0).sum(1).tolist()
            k, v = (x.to(probes.dtype).split(counts) for x in both)
            return [[Plain(*each)] for each in zip(k, v, strict=True)]

        return await group.compute(restored, layer)

    def _rotation(self, rank: int) -> tuple[Tensor, Tensor]:
        """The rotation of the keys that a rank has."""
        positions = torch.cat([torch.arange(*span) for span, _ in self._group.rows[rank]])
        (positions,) = self._group.up(positions)
        return self._rotary.table(positions, torch.float32)


def _placed(levels: Tensor) -> tuple[Tensor, Tensor]:
    """KV head and fineness of the blocks that are sent."""
    kept = levels > 0
    return kept.nonzero()[:, 0], levels[kept].long() - 1
