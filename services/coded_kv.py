"""Keys and values on their way to the shard that keeps them, rounded and entropy-coded.

For prompts whose attention is not exact, over slow links. What later queries will need is not
known, so every block has the same steps, finer than those of `Selection.steps`.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from sps2.common.errors import Invalid
from sps2.common.model.config import ModelConfig, Rope
from sps2.common.model.rope import Rotary
from sps2.common.transport import lossless
from sps2.common.transport.expected import Like, check
from sps2.kernels.coded_blocks import Offsets, Steps, from_codes, query_weight, scaled, to_codes
from sps2.kernels.coded_streams import read, write
from sps2.kernels.contracts import BLOCK

STEPS = Steps(0.01, 0.05)
PARTS = 6
"""Tensors of a frame with coded keys and values."""
LEAST = 1e-6
"""The smallest weight of a channel; float16 has it, too."""
LAST_QUERIES = 64
"""Rows whose queries stand for those to come."""


def pack(
    k: Tensor, v: Tensor, q: Tensor, start: int, config: ModelConfig, steps: Steps = STEPS
) -> list[Tensor]:
    """The tensors that carry keys and values, [tokens, kv_heads, dim] each, on the CPU.

    Args:
        q: [rows, heads, dim], queries after these keys of the same heads, or beside them.
        start: position of the first key.
    """
    tokens, kv_heads, dim = k.shape
    of = scaled(k, v, _table(config.rope, dim, start, tokens), 0 if start else BLOCK)
    kept, levels, heads = _all(kv_heads, tokens)
    weight = query_weight(q[-LAST_QUERIES:], kv_heads, config.scale).clamp_(min=LEAST).half()
    codes = to_codes(of, kept, levels, weight.float(), steps)
    tables, data = write(codes, heads, levels, kv_heads)
    return [torch.tensor([tokens], dtype=torch.int32), of.mean, of.middle, weight, tables, data]


def unpack(
    tensors: Sequence[Tensor],
    start: int,
    config: ModelConfig,
    dtype: torch.dtype,
    steps: Steps = STEPS,
) -> tuple[Tensor, ...]:
    """Undo `pack`, exact to half a step, or lossless packing.

    Raises:
        Invalid: what came is damaged.
    """
    if len(tensors) != PARTS:
        return lossless.unpack(tensors, (Like(dtype, (None, None, config.head_dim)),) * 2)
    kv_heads, dim = len(tensors[1]), config.head_dim
    check("coded KV", tensors, _like(kv_heads, dim))
    count, mean, middle, weight, tables, data = tensors
    tokens = int(count)
    if not 1 <= tokens <= config.max_context:
        raise Invalid(f"coded KV of {tokens} tokens came")
    kept, levels, heads = _all(kv_heads, tokens)
    try:
        codes = read(data, tables, heads, levels)
    except ValueError as error:
        raise Invalid(str(error)) from error
    table = _table(config.rope, dim, start, kept.shape[1] * BLOCK)
    both = from_codes(codes, kept, levels, weight.float(), steps, Offsets(mean, middle), table)
    k, v = (x.view(kv_heads, -1, dim)[:, :tokens].transpose(0, 1).to(dtype) for x in both)
    return k, v


def _all(kv_heads: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """All blocks are kept, at level 0; and the KV head of each."""
    kept = torch.ones(kv_heads, -(-tokens // BLOCK), dtype=torch.bool)
    heads = kept.nonzero()[:, 0]
    return kept, torch.zeros_like(heads), heads


@lru_cache(16)  # all layers of a prompt need the same
def _table(rope: Rope, dim: int, start: int, tokens: int) -> tuple[Tensor, Tensor]:
    return Rotary(rope, dim).table(torch.arange(start, start + tokens), torch.float32)


def _like(kv_heads: int, dim: int) -> tuple[Like, ...]:
    return (
        Like(torch.int32, (1,)),
        Like(torch.float16, (kv_heads, dim)),
        Like(torch.int8, (kv_heads,)),
        Like(torch.float16, (kv_heads, dim)),
        Like(torch.uint8, (kv_heads, 2 * dim + 1)),
        Like(torch.uint8, (None,)),
    )
