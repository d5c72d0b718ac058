"""The interface of attention, which is passed into the model: the model only computes q, k, v."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from torch import Tensor

Result = TypeVar("Result")


class Attend(Protocol):
    """Attention of one forward pass, wherever the KV is."""

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Add `k` and `v` to the KV, then attend with rotated `q` to everything visible.

        Args:
            layer: index of the layer.
            q: [tokens, heads, head_dim], contiguous.
            k, v: [tokens, kv_heads, head_dim], contiguous.

        Returns:
            [tokens, heads, head_dim].
        """
        ...


class Run(Protocol):
    """Runs a piece of work: inline, or on a compute thread while the event loop moves tensors."""

    def __call__(self, work: Callable[[], Result], /) -> Awaitable[Result]:
        """Return the result of `work`; other tasks of the loop may run meanwhile."""
        ...


async def inline(work: Callable[[], Result]) -> Result:
    """Run `work` at once on the calling thread."""
    return work()
