"""The shards as the scheduler knows them: who is there, who is busy, how much room is left."""

from dataclasses import dataclass, field

from sps2.common.messages import Role, Room, Shard


@dataclass
class Member:
    """One shard that is there; `requests` are those it works for now."""

    shard: Shard
    requests: set[str] = field(default_factory=set)
    owned: set[str] = field(default_factory=set)
    """Requests whose layers it runs while decoding."""


class Fleet:
    """Members by id, those that were lost, and the room of the directory less what is on its way.

    Args:
        prefill, decode: how many shards of each role the cluster is configured to have.
    """

    def __init__(self, prefill: int, decode: int) -> None:
        self.expected: dict[Role, int] = {"prefill": prefill, "decode": decode}
        self.members: dict[str, Member] = {}
        self.lost: dict[str, Shard] = {}
        self.room = Room({}, {})
        self.pending: dict[str, dict[str, int]] = {}
        """Pages per shard of requests whose lease has not been granted yet."""

    def join(self, shard: Shard) -> None:
        self.members[shard.id] = Member(shard)
        self.lost.pop(shard.id, None)

    def lose(self, shard_id: str, peer: str) -> bool:
        """Drop that life of a shard; False if it was gone already."""
        member = self.members.get(shard_id)
        if member is None or member.shard.peer.name != peer:
            return False
        self.lost[shard_id] = self.members.pop(shard_id).shard
        return True

    def of(self, role: Role) -> list[Member]:
        """Members of a role, by id."""
        found = [member for member in self.members.values() if member.shard.role == role]
        return sorted(found, key=lambda member: member.shard.id)

    def complete(self, role: Role) -> bool:
        return len(self.of(role)) >= self.expected[role]

    def idle_prefill(self) -> list[Member]:
        return [member for member in self.of("prefill") if not member.requests]

    def decode_with_room(self) -> list[tuple[Member, int]]:
        """Decode members that the directory knows, with their free pages."""
        taken: dict[str, int] = {}
        for pages in self.pending.values():
            for shard, count in pages.items():
                taken[shard] = taken.get(shard, 0) + count
        return [
            (member, self.room.free[member.shard.id] - taken.get(member.shard.id, 0))
            for member in self.of("decode")
            if member.shard.id in self.room.free
        ]

    def serving(self) -> bool:
        """Whether requests can run, if on fewer shards than configured."""
        known = [member for member in self.of("decode") if member.shard.id in self.room.total]
        return bool(known and self.of("prefill"))

    def waiting_for(self) -> str:
        """What is missing, in words; empty when every shard is there."""
        missing = [
            f"{self.expected[role] - len(self.of(role))} of {self.expected[role]} {role} shards"
            for role in ("prefill", "decode")
            if not self.complete(role)
        ]
        unknown = [
            member.shard.id
            for member in self.of("decode")
            if member.shard.id not in self.room.total
        ]
        if unknown:
            missing.append(f"{', '.join(unknown)} to announce pages to the KV directory")
        return "; ".join(missing)
