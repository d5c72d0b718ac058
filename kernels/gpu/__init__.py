"""Triton kernels for NVIDIA GPUs, Ampere and newer, with the contracts of `sps2.kernels`.

Callers use them for all tensors on a GPU. This module does not import Triton; the others of this
folder do. Under `TRITON_INTERPRET=1` they run on CPU tensors too.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

OLDEST = (8, 0)
"""Compute capability of Ampere: bfloat16 products, asynchronous copies."""


@cache
def missing() -> str | None:
    """Why the kernels cannot run here; None if they can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    if torch.cuda.get_device_capability() < OLDEST:
        return f"{torch.cuda.get_device_name()} is older than Ampere"
    if find_spec("triton") is None:
        return "Triton is not installed: pip install 'sps2[gpu]'"
    return None


def serves(x: Tensor) -> bool:
    """Whether these kernels are for `x`, that is, whether it is on a GPU.

    Raises:
        ValueError: it is, but the kernels cannot run.
    """
    if not x.is_cuda:
        return False
    if why := missing():
        raise ValueError(f"tensors are on {x.device}, where no kernel can run: {why}")
    return True


def upload(x: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor from the host to `device`, without waiting for the device."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 elsewhere."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
