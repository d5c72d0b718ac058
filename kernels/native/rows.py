"""Norm, rotation and gate of many rows: each one pass over memory."""

from ctypes import Structure, c_float, c_int64, c_void_p

import torch
from torch import Tensor

from sps2.kernels import native

STEP = 16
"""Rows have a multiple of so many numbers; a head has twice as many."""


class _Gated(Structure):
    """As in attention.cpp."""

    _fields_ = [
        *((name, c_int64) for name in ("type", "rows", "size", "threads")),
        ("gate", c_void_p),
        ("gate_row", c_int64),
        ("up", c_void_p),
        ("up_row", c_int64),
        ("out", c_void_p),
    ]


class _Normed(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("type", "rows", "size", "threads")),
        ("x", c_void_p),
        ("x_row", c_int64),
        ("plus", c_void_p),
        ("weight", c_void_p),
        ("eps", c_float),
        ("out", c_void_p),
    ]


class _Rotated(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("type", "rows", "heads", "dim", "threads")),
        ("x", c_void_p),
        ("x_row", c_int64),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("out", c_void_p),
    ]


def serves(size: int, *tensors: Tensor) -> bool:
    """Whether rows of `size` of these tensors can be worked on here."""
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
    out = torch.empty(gate.shape, dtype=gate.dtype)
    call = _Gated(
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
    out = torch.empty(x.shape, dtype=x.dtype)
    if plus is not None:
        plus = plus.contiguous()
    call = _Normed(
        **_shape(x),
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
    """`sps2.kernels.rows.rotate`, where the heads of a row lie one after the other."""
    rows, heads, dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype)
    call = _Rotated(
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
