"""How attention is passed into the model: the model computes q, k, v and knows nothing more."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from torch import Tensor

Result = TypeVar("Result")


class Attend(Protocol):
    """Attention of one forward pass, wherever the keys and values are."""

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with rotated `q` to everything visible, having added `k` and `v`.

        Args:
            layer: index of the layer.
            q: [tokens, heads, head_dim], contiguous.
            k, v: [tokens, kv_heads, head_dim], contiguous.

        Returns:
            [tokens, heads, head_dim].
        """
        ...


class Run(Protocol):
    """Runs a piece of arithmetic: inline, or on a compute thread while the loop moves tensors."""

    def __call__(self, work: Callable[[], Result], /) -> Awaitable[Result]:
        """The result of `work`, which other tasks of the loop may run beside."""
        ...


async def inline(work: Callable[[], Result]) -> Result:
    """Run `work` here and now."""
    return work()
