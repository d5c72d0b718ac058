"""What a peer sent is looked at before a kernel sees it, which believes what it is told."""

import torch
from torch import Tensor

from sps2.common.errors import Invalid


def check(what: str, tensor: Tensor, dtype: torch.dtype, *shape: int | None) -> None:
    """Raise Invalid unless a tensor has this dtype and shape; a size of None may be any."""
    sizes = tuple(tensor.shape)
    fitting = tensor.dtype == dtype and len(sizes) == len(shape)
    if not fitting or any(
        must not in (None, size) for size, must in zip(sizes, shape, strict=True)
    ):
        came = ", ".join(map(str, sizes))
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise Invalid(f"{what} of {tensor.dtype} [{came}] came; {dtype} [{wanted}] is wanted")


def check_count(what: str, tensors: tuple[Tensor, ...], count: int) -> None:
    """Raise Invalid unless there are so many tensors."""
    if len(tensors) != count:
        raise Invalid(f"{what} of {len(tensors)} tensors came; {count} are wanted")


def check_layer(layer: int, layers: int) -> None:
    """Raise Invalid unless a model of so many layers has this one."""
    if not 0 <= layer < layers:
        raise Invalid(f"layer {layer} came; one of {layers} is wanted")
