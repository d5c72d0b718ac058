"""The shards as the scheduler knows them: which are present or busy, how much room is left."""

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import replace
from types import MappingProxyType

from sps2.common.errors import Invalid
from sps2.common.messages import Role, Room, Shard
from sps2.common.words import counted
from sps2.services.scheduler.fleet_state import FleetState, Member, number_of
from sps2.services.scheduler.hardware import UNKNOWN, Known, Wire
from sps2.services.scheduler.links import Links
from sps2.services.scheduler.measuring import NOTHING, Measuring, Probing
from sps2.services.scheduler.shard_secrets import without_tokens
from sps2.services.scheduler.speeds import Speeds

__all__ = ["ROLES", "Fleet", "FleetState", "Member"]

ROLES: tuple[Role, ...] = ("prefill", "decode", "mixed")


class Fleet:
    """Members and lost shards by id, and the directory's room with the pages not leased yet.

    Shards whose numbers are beyond the configured ones have joined: they are expected as long as
    they are there.

    Args:
        prefill, decode, mixed: how many shards of each role are configured. A cluster has prefill
            and decode shards, or mixed ones.
        duties: of mixed shards that are to do only one of the two, by id.
        measures: what shards measure of themselves and of their links.
    """

    def __init__(
        self,
        prefill: int = 0,
        decode: int = 0,
        mixed: int = 0,
        duties: Mapping[str, Role] = MappingProxyType({}),
        measures: Measuring = NOTHING,
    ) -> None:
        self.expected: dict[Role, int] = {"prefill": prefill, "decode": decode, "mixed": mixed}
        self.prefilling: Role = "mixed" if mixed else "prefill"
        """The role of the shards that prefill."""
        self.keeping: Role = "mixed" if mixed else "decode"
        """The role of the shards that keep KV."""
        self.members: dict[str, Member] = {}
        self.lost: dict[str, Shard] = {}
        self.leaving: set[str] = set()
        """Members that finish what they have, and get no new work."""
        self.room = Room({}, {})
        self.changes = 0
        """Counts what may let waiting requests start: see `View.consider`."""
        self.shard_changes = 0
        """As `changes`, for requests that wait for shards."""
        self.speeds = Speeds()
        """How fast shards are, as far as it was learned; its time is that of the last event."""
        self.links = Links()
        """How good their links are."""
        self.measures = measures
        self.probing = Probing({})
        self.page_tokens = 1
        """Tokens of a page on the shards that keep KV."""
        self._duties = dict(duties)
        self._roles: dict[Role, list[Member]] = {}
        self._prefillers: list[Member] = []
        self._keepers: list[Member] = []
        self._hosts: dict[str, list[Member]] = {}
        self._promised: dict[str, dict[str, int]] = {}
        """Pages by request and shard, of requests whose lease is not granted yet."""
        self._taken: dict[str, int] = {}
        """The sum of these by shard."""
        self._apart: dict[frozenset[str], float] = {}
        """Pairs of members that have lost the link between them, with the time until it counts."""

    def state(self) -> FleetState:
        """A view of all that it knows but secrets, to be encoded before the next event."""
        return FleetState(
            self.expected,
            self._duties,
            tuple(
                replace(member, shard=without_tokens(member.shard))
                for member in self.members.values()
            ),
            tuple(map(without_tokens, self.lost.values())),
            self.room,
            self.changes,
            self.shard_changes,
            self._promised,
            tuple((min(pair), max(pair), until_s) for pair, until_s in self._apart.items()),
            self.speeds.state(),
            tuple(sorted(self.leaving)),
            self.measures,
            self.links.state(),
            [*self.links.doubted],
            self.probing,
        )

    @classmethod
    def restored(cls, state: FleetState) -> "Fleet":
        """The fleet that had this state, which it takes over."""
        prefill, decode, mixed = (state.expected[role] for role in ROLES)
        fleet = cls(prefill, decode, mixed, state.duties, state.measures)
        fleet.members = {member.shard.id: member for member in state.members}
        fleet.lost = {shard.id: shard for shard in state.lost}
        fleet.room, fleet.speeds = state.room, Speeds(state.speeds)
        fleet.leaving = {*state.leaving}
        fleet.links, fleet.probing = Links(state.paths, state.doubted), state.probing
        fleet.changes, fleet.shard_changes = state.changes, state.shard_changes
        for request, pages in state.promised.items():
            fleet.promise(request, pages)
        fleet._apart = {frozenset((one, other)): until_s for one, other, until_s in state.apart}
        fleet._index()
        return fleet

    def changes_for(self, cause: str) -> int:
        """The count of changes that matter to a request with this cause of waiting."""
        return self.shard_changes if cause == "shards" else self.changes

    def join(self, shard: Shard, draining: bool = False) -> None:
        self._forget(shard.id)
        (self.leaving.add if draining else self.leaving.discard)(shard.id)
        if shard.gflops and self.measures.speeds:
            self.speeds.claim(shard.id, shard.gflops, self.speeds.now_s)
        if any(self.measures):
            self.probing.due_s[shard.id] = self.speeds.now_s
        self.members[shard.id] = Member(shard)
        self.lost.pop(shard.id, None)
        self._index()

    def lose(self, shard_id: str, peer: str) -> bool:
        """Remove a shard, unless it restarted since `peer`; False if that one was gone already."""
        member = self.members.get(shard_id)
        if member is None or member.shard.peer.name != peer:
            return False
        gone = self.members.pop(shard_id).shard
        if shard_id not in self.leaving or self._is_configured(gone):
            self.lost[shard_id] = gone
        self.leaving.discard(shard_id)
        self._forget(shard_id)
        self._index()
        return True

    def retire(self, shard_id: str) -> None:
        """Give a shard no new work from now on. One that joined is gone when it ends, not lost.

        One that is lost is forgotten.
        """
        self.lost.pop(shard_id, None)
        if shard_id in self.members:
            self.leaving.add(shard_id)
            self._index()

    def employ(self, shard_id: str) -> None:
        """Give a shard work again."""
        self.leaving.discard(shard_id)
        self._index()

    def part(self, one: str, other: str, until_s: float) -> None:
        """Record that two processes, by their data-plane names, cannot reach each other."""
        shards = {peer.name: id for id, each in self.members.items() for peer in each.shard.peers}
        pair = frozenset(shards[name] for name in (one, other) if name in shards)
        if len(pair) == 2:
            self._apart[pair] = until_s

    def reunite(self, now_s: float) -> None:
        """Forget the pairs apart whose time is over; it is `now_s`."""
        self.speeds.now_s = now_s
        left = {pair: until for pair, until in self._apart.items() if until > now_s}
        self.changes += len(left) < len(self._apart)
        self.shard_changes += len(left) < len(self._apart)
        self._apart = left

    def apart_until_s(self) -> float | None:
        """When the next pair is tried again; None if no pair is apart."""
        return min(self._apart.values(), default=None)

    def pairs_apart(self, shards: Collection[str]) -> list[frozenset[str]]:
        """The pairs apart among these shards."""
        return [pair for pair in self._apart if pair <= {*shards}]

    def without(self, shard_id: str) -> "Fleet":
        """A copy without one member, only for reading."""
        fleet = copy(self)
        fleet.members = {id: each for id, each in self.members.items() if id != shard_id}
        fleet._index()
        return fleet

    def promise(self, request: str, pages: Mapping[str, int]) -> None:
        """Record that a request gets these pages, until its lease is granted or it ends."""
        self._promised[request] = dict(pages)
        for shard, count in pages.items():
            self._taken[shard] = self._taken.get(shard, 0) + count

    def settle(self, request: str) -> None:
        """Forget what was promised to a request: the directory's room counts it, or it ended."""
        for shard, count in self._promised.pop(request, {}).items():
            self._taken[shard] -= count

    def beside(self, member: Member) -> list[Member]:
        """All members on the host of one, itself included."""
        return self._hosts[member.shard.host]

    def _index(self) -> None:
        """Sort the members anew, after one has joined or left."""
        self._roles, self._hosts = {}, {}
        self._prefillers, self._keepers = [], []
        for id, member in sorted(self.members.items()):
            self._hosts.setdefault(member.shard.host, []).append(member)
            if id in self.leaving:
                continue
            duty = self.duty(id)
            self._prefillers += [member] * (duty != "decode")
            self._keepers += [member] * (duty != "prefill")
            self._roles.setdefault(member.shard.role, []).append(member)
        self._prefillers = self._prefillers or self.of("mixed")
        self._keepers = self._keepers or self.of("mixed")
        pages = [member.shard.page_tokens for member in self._keepers]
        self.page_tokens = max(pages, default=1)

    def _forget(self, shard_id: str) -> None:
        """Forget what was learned of a shard that joins anew or is gone."""
        self.speeds.forget(shard_id)
        self.links.forget(shard_id)
        self.probing.due_s.pop(shard_id, None)
        self._apart = {pair: until for pair, until in self._apart.items() if shard_id not in pair}

    @property
    def in_place(self) -> bool:
        """Whether prompts are decoded where they were prefilled: all shards do both."""
        return self.prefilling == "mixed" and not self._duties

    def duty(self, shard_id: str) -> Role:
        """What a shard is used for from now on; its role, unless it was assigned a duty."""
        role: Role = self.prefilling
        if role != "mixed":
            return "prefill" if shard_id.startswith("prefill-") else "decode"
        return self._duties.get(shard_id, role)

    def assign(self, shard_id: str, duty: Role) -> None:
        """Use a mixed shard only for prefill, only for decode, or for both, from now on.

        What it does already goes on.

        Raises:
            Invalid: there is no such mixed shard, or none would prefill or keep KV.
        """
        if self.prefilling != "mixed":
            raise Invalid(
                "prefill and decode shards cannot change their duties, only mixed shards can: "
                "see `spsctl up --mixed`",
                "shard",
            )
        if shard_id not in self.members and shard_id not in self.lost:
            there = ", ".join(sorted([*self.members, *self.lost])) or "none yet"
            raise Invalid(f"there is no shard {shard_id}; there are {there}", "shard")
        duties = {**self._duties, shard_id: duty}
        for other, does in (("decode", "prefill"), ("prefill", "decode")):
            if all(duties.get(member, "mixed") == other for member in self.members):
                raise Invalid(f"with {shard_id} as {duty}, no shard would {does}", "duty")
        self._duties = {id: duty for id, duty in duties.items() if duty != "mixed"}
        self._index()

    def prefillers(self) -> list[Member]:
        """The members that prefill, sorted by id; only for reading."""
        return self._prefillers

    def relative_speeds(self) -> dict[str, float]:
        """The speed of each member that prefills, relative to the fastest; empty if all are alike.

        They are rounded, and depend on the time: see `Speeds`.
        """
        return self.speeds.relative(member.shard.id for member in self._prefillers)

    def relative_wires(self) -> dict[str, Wire]:
        """The link of each member relative to the best; empty if all are alike."""
        return self.links.relative(tuple(self.members)) if self.measures.links else {}

    def wires_of(self, group: Sequence[str]) -> tuple[Wire, ...]:
        """The `relative_wires` of a group by rank; empty if all of these are alike."""
        wires = self.relative_wires()
        found = tuple(wires.get(shard, Wire()) for shard in group)
        return () if {*found} == {Wire()} else found

    def known(self) -> Known:
        """What was measured of the fastest shard and of the best link."""
        if not any(self.measures):
            return UNKNOWN
        prefillers = [member.shard.id for member in self._prefillers]
        rate = self.speeds.fastest_gflops(prefillers) if self.measures.speeds else None
        return Known(rate, *self.links.best(self.members))

    def speeds_of(self, group: Sequence[str]) -> tuple[float, ...]:
        """The `relative_speeds` of a group by rank; empty if all shards are alike."""
        speeds = self.relative_speeds()
        return tuple(speeds.get(shard, 1.0) for shard in group) if speeds else ()

    def keepers(self) -> list[Member]:
        """The members that keep the KV of new requests, sorted by id; only for reading."""
        return self._keepers

    def keeps(self, shard_id: str) -> bool:
        """Whether a shard is present and keeps the KV of new requests."""
        return any(member.shard.id == shard_id for member in self._keepers)

    def of(self, role: Role) -> list[Member]:
        """The members of a role that are not leaving, sorted by id; only for reading."""
        return self._roles.get(role, [])

    def keeps_all(self) -> bool:
        """Whether all shards that are to keep KV are present, with their pages known."""
        known = [each for each in self.keepers() if each.shard.id in self.room.total]
        prefill = sum(duty == "prefill" for duty in self._duties.values())
        return len(known) >= self._wanted(self.keeping) - prefill

    def most_prefillers(self) -> int:
        """How many shards prefill when all are present."""
        decode = sum(duty == "decode" for duty in self._duties.values())
        return self._wanted(self.prefilling) - decode

    def _wanted(self, role: Role) -> int:
        """How many shards of a role are to be there: those configured, and those that joined."""
        joined = sum(not self._is_configured(each.shard) for each in self.of(role))
        return self.expected[role] + joined

    def _here(self, role: Role) -> int:
        """How many of the shards that are to be there are; one that drains is."""
        drain = (self.members[id].shard for id in self.leaving)
        drain_here = sum(each.role == role and self._is_configured(each) for each in drain)
        return len(self.of(role)) + drain_here

    def _is_configured(self, shard: Shard) -> bool:
        """Whether a shard is one of those configured; others have joined."""
        return number_of(shard.id) < self.expected[shard.role]

    def answer_room(self, prompt_tokens: int, shards: int | None, parts: int = 1) -> int:
        """Most tokens of an answer without `max_tokens`; 0 while no pool is known.

        It is what fits beside the prompt when nothing else runs.

        Args:
            shards: how many shards may keep the KV; None for all.
            parts: at most one of this many equal parts of the largest pool.
        """
        pools = sorted(
            (self.room.total[each.shard.id] * each.shard.page_tokens, each.shard.page_tokens)
            for each in self.keepers()
            if each.shard.id in self.room.total
        )[::-1][:shards]
        if not pools:
            return 0
        largest, page_tokens = pools[0]
        last = (prompt_tokens - 1) % page_tokens + 1
        together = sum(tokens for tokens, _ in pools) - prompt_tokens
        return max(1, min(largest // parts, largest - last, together))

    def with_room(self) -> list[tuple[Member, int]]:
        """Members that keep KV and are known to the directory, with their free pages."""
        free, taken = self.room.free, self._taken
        return [
            (member, free[id] - taken.get(id, 0))
            for member in self.keepers()
            if (id := member.shard.id) in free
        ]

    def free(self, shard: str) -> int:
        """Free pages of a shard that are not promised; 0 if it is unknown to the directory."""
        return self.room.free.get(shard, 0) - self._taken.get(shard, 0)

    def counters(self) -> dict[str, float]:
        """Present and configured shards, for each role that the cluster has."""
        roles = [role for role, expected in self.expected.items() if expected]
        return {
            **{f"{role}_shards": float(self._here(role)) for role in roles},
            **{f"{role}_shards_expected": float(self._wanted(role)) for role in roles},
        }

    def serving(self) -> bool:
        """Whether requests can run, even if on fewer shards than configured."""
        known = [m for m in self.keepers() if m.shard.id in self.room.total]
        return bool(known and self.prefillers())

    def waiting_for(self) -> str:
        """What is missing, in words; empty when every shard is present."""
        missing = [
            f"{wanted - here} of {counted(wanted, f'{role} shard')}"
            for role in self.expected
            if (here := self._here(role)) < (wanted := self._wanted(role))
        ]
        missing += [f"{shard} is draining" for shard in sorted(self.leaving)]
        unknown = [
            member.shard.id for member in self.keepers() if member.shard.id not in self.room.total
        ]
        if unknown:
            missing.append(f"pages of {', '.join(unknown)} in the KV directory")
        return "; ".join(missing)
