"""What a fleet knows of its shards, as data."""

from dataclasses import dataclass, field

import msgspec

from sps2.common.messages import Role, Room, Shard
from sps2.services.scheduler.links import Path
from sps2.services.scheduler.measuring import Measuring, Probing
from sps2.services.scheduler.speeds import SpeedsState


@dataclass
class Member:
    """One shard that is present, and the requests that it works for now."""

    shard: Shard
    prefilled: dict[str, int] = field(default_factory=dict)
    """Requests whose prefill it takes part in, each with how many tokens are to be computed."""
    held: set[str] = field(default_factory=set)
    """Requests with KV on this shard, or with pages for it."""
    owned: set[str] = field(default_factory=set)
    """Requests that it decodes as their owner."""
    given: int = 0
    """How many prefills it has taken part in."""
    left_out: str = ""
    """Why the last prompt that could have used it did not, in words."""

    @property
    def requests(self) -> set[str]:
        return self.prefilled.keys() | self.held

    @property
    def is_idle(self) -> bool:
        return not self.prefilled and not self.held

    def leave(self, request: str) -> None:
        """Remove a request."""
        self.prefilled.pop(request, None)
        for each in (self.held, self.owned):
            each.discard(request)

    def could_take(self, tokens: int, pass_tokens: int) -> bool:
        """Whether a prompt could share passes with those that it prefills: all must be short.

        A shard of several processes prefills one prompt after the other.
        """
        counts = [*self.prefilled.values(), tokens]
        short = max(counts) <= pass_tokens // 8
        return short and sum(counts) <= pass_tokens and not self.shard.followers


def number_of(shard_id: str) -> int:
    """The number in a shard's id."""
    number = shard_id.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


class FleetState(msgspec.Struct, frozen=True):
    """All that a fleet knows, as data; see `Fleet`."""

    expected: dict[Role, int]
    duties: dict[str, Role]
    members: tuple[Member, ...]
    lost: tuple[Shard, ...]
    room: Room
    changes: int
    shard_changes: int
    promised: dict[str, dict[str, int]]
    apart: tuple[tuple[str, str, float], ...]
    speeds: SpeedsState
    leaving: tuple[str, ...]
    measures: Measuring
    paths: dict[str, dict[str, Path]]
    doubted: list[str]
    probing: Probing
