"""Norm, rotation and gate of many rows, in C++: one pass over memory each."""

import torch
from torch import Tensor

from sps2.kernels import check, native
from sps2.kernels.native import abi

STEP = 16
"""Rows have a multiple of this many numbers; a head has a multiple of twice as many."""


def serves(size: int, *tensors: Tensor) -> bool:
    """Whether rows of `size` numbers of these tensors are supported."""
    return (
        native.level > 0
        and all(
            x.device.type == "cpu" and x.dtype in native.FLOATING and x.stride(-1) == 1
            for x in tensors
        )
        and size % STEP == 0
    )


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`sps2.kernels.rows.swiglu`."""
    if up.shape != gate.shape or up.dtype != gate.dtype:
        check.shaped("up", up, tuple(gate.shape))
        check.typed("up", up, gate.dtype)
    out = torch.empty(gate.shape, dtype=gate.dtype)
    call = abi.Gated(
        **_shape(gate),
        gate=gate.data_ptr(),
        gate_row=gate.stride(0),
        up=up.data_ptr(),
        up_row=up.stride(0),
        out=out.data_ptr(),
    )
    native.invoke("sps2_swiglu", call)
    return out


def add_norm(x: Tensor, plus: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """`sps2.kernels.rows.add_norm`, for x [rows, size]."""
    if weight.shape != x.shape[1:] or x.dtype not in (weight.dtype, torch.float32):
        check.shaped("weight", weight, (x.shape[1],))
        check.typed("x", x, weight.dtype, torch.float32)
    out = torch.empty(x.shape, dtype=weight.dtype)
    if plus is not None:
        if plus.shape != x.shape or plus.dtype != weight.dtype:
            check.shaped("plus", plus, tuple(x.shape))
            check.typed("plus", plus, weight.dtype)
        plus = plus.contiguous()
    call = abi.Normed(
        **(_shape(x) | {"type": native.TYPES[weight.dtype]}),
        x_type=native.TYPES[x.dtype],
        x=x.data_ptr(),
        x_row=x.stride(0),
        plus=None if plus is None else plus.data_ptr(),
        weight=weight.data_ptr(),
        eps=eps,
        out=out.data_ptr(),
    )
    native.invoke("sps2_add_norm", call)
    return out


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """`sps2.kernels.rows.rotate`, for x whose heads are contiguous within a row."""
    rows, heads, dim = x.shape
    for side in (cosines, sines):
        if side.shape != (rows, 1, dim) or side.dtype != x.dtype or not side.is_contiguous():
            check.table(x, (cosines, sines))
            raise ValueError("table must be contiguous")
    out = torch.empty(x.shape, dtype=x.dtype)
    call = abi.Rotated(
        type=native.TYPES[x.dtype],
        rows=rows,
        heads=heads,
        dim=dim,
        threads=torch.get_num_threads(),
        x=x.data_ptr(),
        x_row=x.stride(0),
        cosines=cosines.data_ptr(),
        sines=sines.data_ptr(),
        out=out.data_ptr(),
    )
    native.invoke("sps2_rotate", call)
    return out


def _shape(x: Tensor) -> dict[str, int]:
    return {
        "type": native.TYPES[x.dtype],
        "rows": x.shape[0],
        "size": x.shape[1],
        "threads": torch.get_num_threads(),
    }
