"""Writes new keys and values into the slots of a pool."""

import torch
from torch import Tensor

from sps2.kernels import gpu
from sps2.kernels.kv_quantize import quantise_rows
from sps2.kernels.rows import rotate
from sps2.kernels.state import Scales


def append(
    k: Tensor,
    v: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    slots: Tensor | tuple[slice, slice],
    scales: Scales | None = None,
    table: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Write k and v into slots, quantised to 8 bits if the pool is int8.

    Args:
        k, v: [rows, kv_heads, dim].
        k_pool, v_pool: [slots, kv_heads, dim], in the dtype of k or in int8.
        slots: [rows] int64, each at most once; or slices of slots and of KV heads.
        scales: of an int8 pool; they are written too.
        table: rotates k, as in `sps2.kernels.rows.rotate`; None: k is rotated already.
    """
    if isinstance(slots, Tensor) and gpu.serves(k):
        from sps2.kernels.gpu import append as fused

        fused.append(k, v, k_pool, v_pool, slots, scales, table)
        return
    k = k if table is None else rotate(k, table)
    for x, pool, by in zip((k, v), (k_pool, v_pool), scales or (None, None), strict=True):
        if by is None:
            pool[slots] = x
        else:
            pool[slots], by[slots] = quantise_rows(x, torch.float32)
