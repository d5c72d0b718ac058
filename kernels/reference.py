"""Float32 reference implementations of kernels, as short as the definitions."""

import torch
from torch import Tensor

from sps2.kernels.state import State


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_positions: Tensor,
    k_positions: Tensor,
    scale: float | None = None,
    window: int | None = None,
) -> State:
    """Attention of q [n, heads, dim] to k, v [m, kv_heads, dim] at any positions, in float32."""
    group, scale = q.shape[1] // k.shape[1], q.shape[2] ** -0.5 if scale is None else scale
    k, v = (tensor.float().repeat_interleave(group, 1) for tensor in (k, v))
    distance = q_positions[:, None] - k_positions
    visible = (distance >= 0) & (distance < (window or torch.inf))
    scores = torch.einsum("nhd,mhd->nhm", q.float(), k) * scale
    scores = scores.masked_fill(~visible[:, None], -torch.inf)
    lse = scores.logsumexp(-1) if len(k) else torch.full(scores.shape[:2], -torch.inf)
    weights = (scores - lse[..., None]).exp().nan_to_num()
    return State(torch.einsum("nhm,mhd->nhd", weights, v), lse)
