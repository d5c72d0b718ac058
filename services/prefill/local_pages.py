"""How a rank uses the KV pages of the process that it runs in, if that has any."""

from typing import Protocol

from torch import Tensor

from sps2.common.errors import Invalid
from sps2.kernels import State

Key = tuple[str, int]
"""(request, epoch)"""


class LocalPages(Protocol):
    """The KV pages of the process that the rank runs in."""

    def keep(self, key: Key, layer: int, at: int, head: int, k: Tensor, v: Tensor) -> None:
        """Copy k and v, [tokens, heads, head_dim], from position `at` and KV head `head` on.

        Raises:
            Cancelled: the request is not held here any more.
        """
        ...

    def attend(self, key: Key, layer: int, at: int, head: int, q: Tensor, stop: int) -> State:
        """Attend to the keys of a request here that precede `q`; may be called on any thread.

        Args:
            at: position of the first row of q; the rows are consecutive.
            head: KV head of the first head of q.
            q: [rows, heads, head_dim].
            stop: the position before which keys count.

        Raises:
            Cancelled: the request is not held here any more.
        """
        ...

    def decoding(self) -> bool:
        """Whether a decode step of the process is under way or follows."""
        ...


class NoPages:
    """The `LocalPages` of a process that has no pages: raises Invalid."""

    def keep(self, key: Key, layer: int, at: int, head: int, k: Tensor, v: Tensor) -> None:
        raise Invalid(f"the KV of request {key[0]} cannot stay here: this shard has no pages")

    def attend(self, key: Key, layer: int, at: int, head: int, q: Tensor, stop: int) -> State:
        raise Invalid(f"the prefix of request {key[0]} is not here: this shard has no pages")

    def decoding(self) -> bool:
        return False


NO_PAGES = NoPages()
