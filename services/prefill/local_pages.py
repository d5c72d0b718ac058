"""What a rank may ask of the process it runs in, where that has pages."""

from typing import Protocol

from torch import Tensor

from sps2.common.errors import Invalid
from sps2.kernels import State

Key = tuple[str, int]
"""(request, epoch)"""


class LocalPages(Protocol):
    """The pages of this very process."""

    def keep(self, key: Key, layer: int, at: int, head: int, k: Tensor, v: Tensor) -> None:
        """Copy k and v, [tokens, heads, head_dim], from position `at` and KV head `head` on.

        Raises:
            Cancelled: the request is not held here any more.
        """
        ...

    def attend(self, key: Key, layer: int, at: int, head: int, q: Tensor) -> State:
        """Attention to the cached pages that a request shares here; on any thread.

        Args:
            at: the position of the first of q's rows, which follow each other.
            head: KV head of the first of q's heads.
            q: [rows, heads, head_dim].

        Raises:
            Cancelled: the request is not held here any more.
        """
        ...


class NoPages:
    """The `LocalPages` of a process without."""

    def keep(self, key: Key, layer: int, at: int, head: int, k: Tensor, v: Tensor) -> None:
        raise Invalid(f"the KV of request {key[0]} cannot stay here: this shard has no pages")

    def attend(self, key: Key, layer: int, at: int, head: int, q: Tensor) -> State:
        raise Invalid(f"the prefix of request {key[0]} is not here: this shard has no pages")


NO_PAGES = NoPages()
