"""The shards as the scheduler knows them: who is there, who is busy, how much room is left."""

from collections.abc import Collection
from copy import copy
from dataclasses import dataclass, field

from sps2.common.messages import Role, Room, Shard
from sps2.common.words import counted

SHARES = 8
"""An answer of no stated length has one of so many parts of a pool at most."""


@dataclass
class Member:
    """One shard that is there, and the requests that it works for now."""

    shard: Shard
    prefilled: dict[str, int] = field(default_factory=dict)
    """Requests whose prefill it takes part in, and how many tokens of them are computed."""
    held: set[str] = field(default_factory=set)
    """Requests with KV there, or with pages for it."""
    owned: set[str] = field(default_factory=set)
    """Requests whose layers it runs while decoding."""

    @property
    def requests(self) -> set[str]:
        return self.prefilled.keys() | self.held

    def leave(self, request: str) -> None:
        """Forget a request."""
        self.prefilled.pop(request, None)
        for each in (self.held, self.owned):
            each.discard(request)

    def could_take(self, tokens: int, pass_tokens: int) -> bool:
        """Whether a prompt could go through the layers with those that it has, all of them short.

        A shard of several processes takes one prompt after the other.
        """
        counts = [*self.prefilled.values(), tokens]
        short = max(counts) <= pass_tokens // 8
        return short and sum(counts) <= pass_tokens and not self.shard.followers


class Fleet:
    """Members by id, those that were lost, and the room of the directory less what is on its way.

    Args:
        prefill, decode, mixed: how many shards of each role the cluster is configured to have: of
            the first two, or of the last.
    """

    def __init__(self, prefill: int = 0, decode: int = 0, mixed: int = 0) -> None:
        self.expected: dict[Role, int] = {"prefill": prefill, "decode": decode, "mixed": mixed}
        self.in_place = mixed > 0
        """Whether prompts are decoded where they were prefilled."""
        self.prefilling: Role = "mixed" if self.in_place else "prefill"
        """The role of the shards that prefill."""
        self.keeping: Role = "mixed" if self.in_place else "decode"
        """The role of the shards that keep KV."""
        self.members: dict[str, Member] = {}
        self.lost: dict[str, Shard] = {}
        self.room = Room({}, {})
        self.pending: dict[str, dict[str, int]] = {}
        """Pages per shard of requests whose lease has not been granted yet."""
        self._apart: dict[frozenset[str], float] = {}
        """Pairs of members that have lost the link between them, and until when that counts."""

    def join(self, shard: Shard) -> None:
        self._reunite(shard.id)
        self.members[shard.id] = Member(shard)
        self.lost.pop(shard.id, None)

    def lose(self, shard_id: str, peer: str) -> bool:
        """Drop that life of a shard; False if it was gone already."""
        member = self.members.get(shard_id)
        if member is None or member.shard.peer.name != peer:
            return False
        self.lost[shard_id] = self.members.pop(shard_id).shard
        self._reunite(shard_id)
        return True

    def part(self, one: str, other: str, until_s: float) -> None:
        """Two processes cannot reach each other, by their names on the data plane."""
        shards = {peer.name: id for id, each in self.members.items() for peer in each.shard.peers}
        pair = frozenset(shards[name] for name in (one, other) if name in shards)
        if len(pair) == 2:
            self._apart[pair] = until_s

    def reunite(self, now_s: float) -> None:
        """Forget of the pairs apart those whose time is over."""
        self._apart = {pair: until for pair, until in self._apart.items() if until > now_s}

    def apart_until_s(self) -> float | None:
        """When the next pair is tried again."""
        return min(self._apart.values(), default=None)

    def pairs_apart(self, shards: Collection[str]) -> list[frozenset[str]]:
        """Those among so many shards."""
        return [pair for pair in self._apart if pair <= {*shards}]

    def without(self, shard_id: str) -> "Fleet":
        """The same, to be read, with a member less."""
        fleet = copy(self)
        fleet.members = {id: each for id, each in self.members.items() if id != shard_id}
        return fleet

    def _reunite(self, shard_id: str) -> None:
        """Nothing is known of the links of a new life."""
        self._apart = {pair: until for pair, until in self._apart.items() if shard_id not in pair}

    def of(self, role: Role) -> list[Member]:
        """Members of a role, by id."""
        found = [member for member in self.members.values() if member.shard.role == role]
        return sorted(found, key=lambda member: member.shard.id)

    def complete(self, role: Role) -> bool:
        return len(self.of(role)) >= self.expected[role]

    def keeps_all(self) -> bool:
        """Whether all shards that are to keep KV are there, and their pages known."""
        known = [each for each in self.of(self.keeping) if each.shard.id in self.room.total]
        return len(known) >= self.expected[self.keeping]

    def answer_room(self, prompt_tokens: int, shards: int | None) -> int:
        """Tokens of an answer of no stated length; 0 where it is not known what pools there are.

        A share of the largest pool, so that some answers run at once, and no more than fits beside
        the prompt when nothing else runs.

        Args:
            shards: how many may keep it, if not all.
        """
        pools = sorted(
            (self.room.total[each.shard.id] * each.shard.page_tokens, each.shard.page_tokens)
            for each in self.of(self.keeping)
            if each.shard.id in self.room.total
        )[::-1][:shards]
        if not pools:
            return 0
        largest, page_tokens = pools[0]
        last = (prompt_tokens - 1) % page_tokens + 1
        together = sum(tokens for tokens, _ in pools) - prompt_tokens
        return max(1, min(largest // SHARES, largest - last, together))

    def idle(self) -> list[Member]:
        """Members that could prefill now."""
        return [member for member in self.of(self.prefilling) if not member.prefilled]

    def with_room(self) -> list[tuple[Member, int]]:
        """Members that keep KV and that the directory knows, with their free pages."""
        taken: dict[str, int] = {}
        for pages in self.pending.values():
            for shard, count in pages.items():
                taken[shard] = taken.get(shard, 0) + count
        return [
            (member, self.room.free[member.shard.id] - taken.get(member.shard.id, 0))
            for member in self.of(self.keeping)
            if member.shard.id in self.room.free
        ]

    def counters(self) -> dict[str, float]:
        """Shards of each role that there is: those that are there, and those configured."""
        roles = [role for role, expected in self.expected.items() if expected]
        return {
            **{f"{role}_shards": float(len(self.of(role))) for role in roles},
            **{f"{role}_shards_expected": float(self.expected[role]) for role in roles},
        }

    def serving(self) -> bool:
        """Whether requests can run, if on fewer shards than configured."""
        known = [m for m in self.of(self.keeping) if m.shard.id in self.room.total]
        return bool(known and self.of(self.prefilling))

    def waiting_for(self) -> str:
        """What is missing, in words; empty when every shard is there."""
        missing = [
            f"{expected - len(self.of(role))} of {counted(expected, f'{role} shard')}"
            for role, expected in self.expected.items()
            if not self.complete(role)
        ]
        unknown = [
            member.shard.id
            for member in self.of(self.keeping)
            if member.shard.id not in self.room.total
        ]
        if unknown:
            missing.append(f"pages of {', '.join(unknown)} in the KV directory")
        return "; ".join(missing)
