"""Attention and what it is made of: pure functions from tensors to tensors."""

from sps2.kernels.attention import attention
from sps2.kernels.paged import Run, paged_attention
from sps2.kernels.state import State, empty_state, merge, merge_many

__all__ = [
    "Run",
    "State",
    "attention",
    "empty_state",
    "merge",
    "merge_many",
    "paged_attention",
]
