"""One request in the running batch of its owner, as every process of that shard has it."""

import asyncio
from array import array
from dataclasses import dataclass, field

from sps2.common.messages import Token
from sps2.common.model.sample import Sampler
from sps2.services.decode.kv.holding import Holding


@dataclass
class Sequence:
    """`last` is the newest token, whose keys and values are computed by the next step."""

    holding: Holding
    holders: tuple[str, ...]
    """Data-plane names of the other shards with KV of this request."""
    prompt_tokens: int
    """Before the answer's first."""
    last: Token
    q_bytes: int = field(default=0, init=False)
    state_bytes: int = field(default=0, init=False)
    """Moved by this process."""

    @property
    def position(self) -> int:
        """Of the newest token."""
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
    """As the leader has it, which draws the tokens."""

    sampler: Sampler
    ended: asyncio.Future[None]
    times: "array[float]" = field(default_factory=lambda: array("d"))
    """When each of its tokens was drawn."""
