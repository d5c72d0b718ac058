"""A second device for machines without one: it computes on the CPU, and refuses the host's tensors.

What runs on it would run on a GPU, as far as it matters where tensors lie: an operation on tensors
of two places is an error, and none comes back by itself but numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as tree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from triton.runtime.interpreter import GridExecutor

from sps2.common.device import HOST, Mark
from sps2.kernels import gpu

Result = TypeVar("Result")
aten = torch.ops.aten

_setup_privateuseone_for_python_backend("twin")
_kernels = torch.library.Library("aten", "IMPL")


class Twin(Tensor):
    """A tensor of the device; `there` has its numbers."""

    there: Tensor

    def __new__(cls, there: Tensor) -> "Twin":
        made: Twin = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            there.shape,
            strides=there.stride(),
            storage_offset=there.storage_offset(),
            dtype=there.dtype,
            device="twin:0",
        )
        made.there = there
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(
        cls, op: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        leaves = tree.tree_leaves((args, kwargs))
        if op not in (aten.copy_.default, aten._to_copy.default):
            for each in leaves:
                if isinstance(each, Tensor) and not isinstance(each, Twin) and each.dim():
                    raise RuntimeError(f"{op} of a twin and {tuple(each.shape)} of the host")
        known = {id(each.there): each for each in leaves if isinstance(each, Twin)}
        args, kwargs = tree.tree_map(_there, (args, kwargs))
        home = "device" in kwargs and torch.device(kwargs["device"]).type == "cpu"
        if "device" in kwargs:
            kwargs["device"] = "cpu"
        result = op(*args, **kwargs)
        if home:
            return result

        def wrapped(each: Any) -> Any:
            if not isinstance(each, Tensor):
                return each
            return known[id(each)] if id(each) in known else Twin(each)

        return tree.tree_map(wrapped, result)

    def tolist(self) -> Any:
        return self.there.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Twin({self.there})"


class TwinDevice:
    """The `Device`."""

    place = torch.device("twin", 0)

    def compute(self, work: Callable[[], Result]) -> Result:
        return work()

    def mark(self) -> Mark:
        return HOST.mark()

    def up(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for tensor in tensors:
            assert not isinstance(tensor, Twin), "it is there already"
        return tuple(tensor.to(self.place) for tensor in tensors)

    async def down(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensor.cpu().contiguous() for tensor in tensors)


def kernels_there(patch: pytest.MonkeyPatch) -> None:
    """Have tensors of the device go to the Triton kernels, and the host's refused by these."""
    launch = GridExecutor.__call__

    def launched(self: Any, *args: Any, **kwargs: Any) -> None:
        for each in (*args, *kwargs.values()):
            if isinstance(each, Tensor) and not isinstance(each, Twin):
                raise RuntimeError(f"{self.fn.__name__} was given a tensor of the host")
        launch(self, *map(_there, args), **{name: _there(each) for name, each in kwargs.items()})

    patch.setattr(GridExecutor, "__call__", launched)
    patch.setattr(gpu, "serves", lambda x: isinstance(x, Twin))


def _there(each: Any) -> Any:
    return each.there if isinstance(each, Twin) else each


def _kernel(name: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    def register(made: Callable[..., Tensor]) -> Callable[..., Tensor]:
        _kernels.impl(name, made, "PrivateUse1")
        return made

    return register


@_kernel("empty.memory_format")
def _empty(size: Sequence[int], dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return Twin(torch.empty(size, dtype=dtype))


@_kernel("empty_strided")
def _empty_strided(
    size: Sequence[int], stride: Sequence[int], dtype: torch.dtype | None = None, **_: Any
) -> Tensor:
    return Twin(torch.empty_strided(size, stride, dtype=dtype))


@_kernel("arange.start_step")
def _arange(
    start: int, end: int, step: int = 1, dtype: torch.dtype | None = None, **_: Any
) -> Tensor:
    return Twin(torch.arange(start, end, step, dtype=dtype))


@_kernel("arange.start")
def _arange_from(start: int, end: int, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return _arange(start, end, dtype=dtype)


@_kernel("arange")
def _arange_to(end: int, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return _arange(0, end, dtype=dtype)


@_kernel("_copy_from")
def _copy_from(source: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    _there(to).copy_(_there(source))
    return to
