"""What a policy is asked, and what it answers."""

from dataclasses import dataclass
from typing import Literal

from sps2.common.messages import Placement, PrefillOptions
from sps2.services.scheduler.prefix import Prefix
from sps2.services.scheduler.schemes import Partition

NOTHING = PrefillOptions()


@dataclass(frozen=True)
class Work:
    """What a policy needs to know of a request. `max_tokens` bounds the answer.

    hashes: of the prompt's full pages, if cached ones may be used.
    """

    request: str
    prompt_tokens: int
    max_tokens: int
    options: PrefillOptions = NOTHING
    hashes: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Where a request runs: prefill shards, what each does, and KV places, the owner's last.

    prefix: what of the prompt is cached, and so is not computed.
    """

    group: tuple[str, ...]
    partition: Partition
    placements: tuple[Placement, ...]
    migration_pays_after: int | None
    """Tokens of answer; see `traffic.migration_pays_after`."""
    prefix: Prefix

    @property
    def takes(self) -> dict[str, int]:
        """Pages by shard that are not free any more; those of the prefix that were idle, too."""
        return {
            place.shard: place.pages + self.prefix.idle(place.shard) for place in self.placements
        }

    @property
    def owner(self) -> str:
        return self.placements[-1].shard


@dataclass(frozen=True)
class Wait:
    """Why a request cannot be planned now.

    cause: `shards` that prefill are busy; there is too little `room` for its KV; or it needs more
        than what is there while a shard is `absent`.
    reason: what it waits for, in words; of an absent shard only.
    """

    cause: Literal["shards", "room", "absent"]
    reason: str = ""
