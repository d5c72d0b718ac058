"""A request as policies see it, and what planning it gives: a plan, or what it waits for."""

from dataclasses import dataclass
from typing import Literal

from sps2.common.messages import Placement, PrefillOptions
from sps2.common.spans import Span
from sps2.services.scheduler.cached_prefix import Prefix
from sps2.services.scheduler.partition import Partition

NOTHING = PrefillOptions()


@dataclass(frozen=True)
class Work:
    """What a policy needs to know of a request. `max_tokens` bounds the answer.

    hashes: of the prompt's full pages; empty if cached pages may not be used.
    """

    request: str
    prompt_tokens: int
    max_tokens: int
    options: PrefillOptions = NOTHING
    hashes: tuple[bytes, ...] = ()
    resumes: bool = False
    """Whether its first tokens were answered before a shard was lost."""
    priority: int = 0
    """Of the caller; the larger, the sooner."""
    max_ttft_s: float | None = None
    """It is refused if its first token is predicted to come later than this after its arrival."""
    caller: str = ""
    """Who submitted it; callers share the cluster."""
    reserved_tokens: int | None = None
    """Room for this much of the answer is reserved at first, more as it grows; None: for all."""

    @property
    def first_tokens(self) -> int:
        """Tokens of the answer that room is reserved for before it begins."""
        least = self.max_tokens if self.reserved_tokens is None else self.reserved_tokens
        return min(least, self.max_tokens)


@dataclass(frozen=True)
class Plan:
    """Where a request runs: prefill shards with their parts, and KV placements, the owner's last.

    A long prompt may be computed in chunks, one after another, each on shards of its own: then the
    plan has the chunk that comes next.

    group, partition: of the chunk. prefix: the cached beginning of the prompt, which is not
    computed.
    """

    group: tuple[str, ...]
    partition: Partition
    placements: tuple[Placement, ...]
    migration_pays_after: int | None
    """In tokens of the answer; see `traffic.migration_pays_after`."""
    prefix: Prefix
    threads: int = 0
    """Compute threads of a single prefill shard, with those that idle shards beside it lend."""
    rest_s: float = 0.0
    """Predicted seconds of the chunks that follow."""
    shares_steps: bool = False
    """See `messages.Prefill`."""

    @property
    def chunk(self) -> Span:
        """The tokens of the prompt that `group` computes."""
        spans = [span for own in self.partition.spans for span in own if span.tokens]
        return Span(min(span.start for span in spans), max(span.stop for span in spans))

    @property
    def is_first(self) -> bool:
        """Whether its chunk is the first that is computed."""
        return self.chunk.start == self.prefix.tokens

    @property
    def predicted_s(self) -> float:
        """Predicted seconds until the first token, by the formulas and the measured disks."""
        read_s = self.prefix.read_s if self.is_first else 0.0
        return read_s + self.partition.predicted_s + self.rest_s

    def before(self, position: int) -> dict[str, tuple[Span, ...]]:
        """Where the KV of the tokens before a position lies: spans by shard."""
        found = {}
        for place in self.placements:
            own = place.span & Span(0, position)
            if spans := (*place.shared, own) if own.tokens else place.shared:
                found[place.shard] = spans
        return found

    @property
    def takes(self) -> dict[str, int]:
        """Pages by shard that it uses up, including those of the prefix that were free."""
        return {
            place.shard: place.pages + self.prefix.takes(place.shard) for place in self.placements
        }

    @property
    def shards(self) -> set[str]:
        """All shards that work for it."""
        return {*self.group, *(place.shard for place in self.placements)}

    @property
    def owner(self) -> str:
        return self.placements[-1].shard


@dataclass(frozen=True)
class Wait:
    """Why a request cannot be planned now.

    cause: "turn" if the policy lets others start first; "shards" if the shards that prefill are
        busy; "room" if there is too little room for its KV; "prefix" if another request computes
        most of it now; "absent" if it needs more than is present while a shard is absent.
    reason: what it waits for, if there is more to say than `WAITS` does.
    """

    cause: Literal["turn", "shards", "room", "prefix", "absent"]
    reason: str = ""

    @property
    def in_words(self) -> str:
        """What it waits for."""
        return self.reason or WAITS[self.cause]


WAITS = {
    "turn": "its turn",
    "shards": "shards that are free to prefill it",
    "room": "room for its KV",
    "prefix": "pages that another request computes now",
    "absent": "absent shards",
}
