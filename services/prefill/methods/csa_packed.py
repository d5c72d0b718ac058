"""Blocks as CSA sends them over fast links: in 8 or 4 bits, or in the model's dtype."""

from collections.abc import Callable

import torch
from torch import Tensor

from sps2.common.transport.expected import Like
from sps2.kernels.contracts import BLOCK, Packed
from sps2.kernels.csa_scores import Blocks, Plain
from sps2.kernels.kv_quantize import blocks_of, pack
from sps2.services.prefill.group import Group
from sps2.services.prefill.methods.codec import packed_like

DROPPED, COARSE, FINE = range(3)
"""How a block is sent: not at all, in 4 bits, in 8 bits (or in the model's dtype)."""


class PackedForm:
    """The `Form` of blocks in 8 or 4 bits; in the model's dtype if the scheme says so."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._plain = group.scheme.kv_transfer_dtype == "auto"
        assert group.scheme.selection is not None
        self._fine = group.scheme.selection.fine

    def levels(self, layer: int, kept: Tensor, worth: Tensor) -> Tensor:
        levels = kept.to(torch.uint8)
        levels[kept if self._plain else kept & (worth >= self._fine[layer])] = FINE
        return levels

    def sender(self, k: Tensor, v: Tensor) -> Callable[[Tensor, Tensor], list[Blocks]]:
        def made(levels: Tensor, probes: Tensor) -> list[Blocks]:
            """The fine blocks, then the coarse blocks if there can be any, ordered by KV head."""
            if self._plain:
                return [Plain(blocks_of(k)[levels == FINE], blocks_of(v)[levels == FINE])]
            return [
                pack(k, v, levels == FINE, roomy=True),
                pack(k, v, levels == COARSE, 4, roomy=True),
            ]

        return made

    async def carried(self, layer: int, made: list[Blocks], levels: Tensor) -> tuple[Tensor, ...]:
        counts = _counts(levels)
        blocks = [_first(each, count) for each, count in zip(made, counts, strict=False)]
        return _joined([type(each)(*await self._group.down(*each)) for each in blocks])

    def like(self, levels: Tensor, dtype: torch.dtype) -> tuple[Like, ...]:
        fine, coarse = _counts(levels)
        dim = self._group.config.head_dim
        if self._plain:
            return (Like(dtype, (fine, BLOCK, dim)),) * 2
        if not coarse:
            return packed_like(fine, dim)
        (numbers, *_), (_, k_scale, _, v_scale) = (
            packed_like(fine, dim),
            packed_like(fine + coarse, dim),
        )
        small = Like(torch.uint8, (coarse, BLOCK, dim // 2))
        return numbers, numbers, small, small, k_scale, v_scale

    async def blocks(
        self, layer: int, owner: int, levels: Tensor, carried: tuple[Tensor, ...], probes: Tensor
    ) -> list[list[Blocks]]:
        return _by_head(levels, list(self._group.up(*carried)))


def _counts(levels: Tensor) -> tuple[int, int]:
    """How many blocks are fine, and how many coarse."""
    return int((levels == FINE).sum()), int((levels == COARSE).sum())


def _first(blocks: Blocks, count: int) -> Blocks:
    return type(blocks)(*(tensor[:count] for tensor in blocks))


def _joined(blocks: list[Blocks]) -> tuple[Tensor, ...]:
    """The tensors of a frame; the scales of fine and coarse blocks are joined."""
    match blocks:
        case [Packed() as fine, Packed() as coarse] if len(coarse.k):
            scales = (torch.cat(pair) for pair in zip(fine[1::2], coarse[1::2], strict=True))
            return fine.k, fine.v, coarse.k, coarse.v, *scales
    return tuple(blocks[0])


def _by_head(levels: Tensor, carried: list[Tensor]) -> list[list[Blocks]]:
    """The received blocks by KV head, in no particular order."""
    wholes: list[tuple[Tensor, Blocks]]
    if len(carried) == 2:
        wholes = [(levels == FINE, Plain(*carried))]
    elif len(carried) == 4:
        wholes = [(levels == FINE, Packed(*carried))]
    else:
        k, v, small_k, small_v, k_scale, v_scale = carried
        fine = Packed(k, k_scale[: len(k)], v, v_scale[: len(k)])
        small = Packed(small_k, k_scale[len(k) :], small_v, v_scale[len(k) :])
        wholes = [(levels == FINE, fine), (levels == COARSE, small)]
    found: list[list[Blocks]] = [[] for _ in levels]
    for mask, whole in wholes:
        counts = mask.sum(1).tolist()
        parts = zip(*(tensor.split(counts) for tensor in whole), strict=True)
        for head, (count, part) in enumerate(zip(counts, parts, strict=True)):
            if count:
                found[head].append(type(whole)(*part))
    return found
