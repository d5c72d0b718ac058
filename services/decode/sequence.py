"""One request in the running batch of its owner, on every process of that shard."""

import asyncio
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from sps2.common.messages import Token
from sps2.common.model.sampler import Sampler
from sps2.services.decode.kv.holding import Holding

SOON_TOKENS = 32
"""A request asks for more pages when it has room for this many more tokens."""


@dataclass
class Sequence:
    """A request in the batch; the next step computes the KV of `last`, its newest token."""

    holding: Holding
    holders: tuple[str, ...]
    """Data-plane names of the other shards with KV of this request."""
    prompt_tokens: int
    """Tokens before the answer's first."""
    last: Token
    q_bytes: int = field(default=0, init=False)
    state_bytes: int = field(default=0, init=False)
    """Bytes of q and of attention states that this process moved."""

    @property
    def position(self) -> int:
        """Position of the newest token."""
        return self.prompt_tokens + self.last.index

    @property
    def slot(self) -> int:
        """Where the newest token's keys and values go."""
        return self.holding.pages.slot(self.position)

    def count_exchange(self, q_bytes: int, state_bytes: int) -> None:
        self.q_bytes += q_bytes
        self.state_bytes += state_bytes


@dataclass
class Owned(Sequence):
    """A request on the leader, which draws its tokens."""

    sampler: Sampler
    ended: asyncio.Future[None]
    most_tokens: int
    """Tokens of prompt and answer together, at most."""
    ask: Callable[[], object]
    """Called on the data loop when its pages end soon, once until it has `grown`."""
    times: "array[float]" = field(default_factory=lambda: array("d"))
    """When each of its tokens was drawn."""
    _has_asked: bool = field(default=False, init=False)

    @property
    def has_room(self) -> bool:
        """Whether the newest token's keys and values have a place: it can take part in a step."""
        return self.holding.pages.has(self.position)

    def ask_for_pages(self) -> None:
        """Ask for more pages if those that it has end soon."""
        soon = min(self.position + SOON_TOKENS, self.most_tokens - 2)  # the last token has no KV
        if not self._has_asked and soon >= self.position and not self.holding.pages.has(soon):
            self._has_asked = True
            self.ask()

    def grown(self) -> None:
        """It has more pages now, and may ask again."""
        self._has_asked = False
        self.ask_for_pages()
