"""Kernels of attention and of decoder layers: functions from tensors to tensors."""

from sps2.kernels.attention import attention, paged_attention
from sps2.kernels.merge import merge, merge_many
from sps2.kernels.relay import PagedRows
from sps2.kernels.state import Run, Scales, State, empty_state

__all__ = [
    "PagedRows",
    "Run",
    "Scales",
    "State",
    "attention",
    "empty_state",
    "merge",
    "merge_many",
    "paged_attention",
]
