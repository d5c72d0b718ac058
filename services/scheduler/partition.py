"""How the ranks of a group divide a prompt, and what bounds that."""

from typing import NamedTuple

from sps2.common.messages import Scheme, Setting
from sps2.common.spans import Span


class Capacity(NamedTuple):
    """How much KV ranks can keep that have one span each and keep what they compute.

    room: tokens of prompt that each rank can keep. page_tokens: spans begin at its multiples.
    """

    room: tuple[int, ...]
    page_tokens: int


class Partition(NamedTuple):
    """A scheme with the spans of each rank, and its predicted cost.

    predicted_bytes: by purpose. predicted_s: seconds of the prefill. own_gflop: the arithmetic of
    each rank, in GFLOP; empty if that is uncertain.
    """

    attention: Setting
    scheme: Scheme
    spans: tuple[tuple[Span, ...], ...]
    predicted_bytes: dict[str, int]
    predicted_s: float
    own_gflop: tuple[float, ...] = ()

    def after(self, tokens: int) -> "Partition":
        """The same partition, for tokens that follow a prefix of `tokens` tokens."""
        spans = tuple(
            tuple(Span(start + tokens, stop + tokens) for start, stop in own) for own in self.spans
        )
        return self._replace(spans=spans)
