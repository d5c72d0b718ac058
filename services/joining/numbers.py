"""Which shards a joining machine runs: their roles, and numbers that nobody else has."""

from collections import Counter
from collections.abc import Collection
from typing import get_args

from sps2.common.config import Cluster
from sps2.common.errors import Invalid
from sps2.common.messages import Role


def roles_wanted(cluster: Cluster, asked: dict[Role, int], present: Collection[str]) -> list[Role]:
    """The roles of the shards that a machine is to run, one entry for each.

    Args:
        asked: how many shards of each role it asks for; none at all leaves it to the cluster.
        present: ids of the shards that the cluster has.

    Raises:
        Invalid: the cluster has no shards of a role, and cannot use any.
    """
    usable: tuple[Role, ...] = ("mixed",) if cluster.mixed else ("prefill", "decode")
    for role, count in asked.items():
        if count and role not in usable:
            options = " or ".join(f"--{each}" for each in usable)
            raise Invalid(
                f"{role} shards cannot join: this cluster's shards are {' and '.join(usable)} ones "
                f"(join with {options})"
            )
    wanted: list[Role] = [role for role in get_args(Role) for _ in range(asked[role])]
    there = Counter(shard.partition("-")[0] for shard in present)
    return wanted or [min(usable, key=lambda role: there[role])]


class Numbers:
    """Ids of shards by machine.

    A machine that comes again gets its ids again, so that its KV on disk and its state in
    `spsctl status` are found again.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._given: dict[str, tuple[str, ...]] = {}

    def give(
        self, machine: str, asked: dict[Role, int], present: Collection[str]
    ) -> tuple[str, ...]:
        """The ids for a machine's shards.

        Args:
            present: shards that the scheduler knows, lost ones too: their machines may come back.

        Raises:
            Invalid: as `roles_wanted`.
        """
        before = self._given.pop(machine, ())
        configured = {
            f"{role}-{index}"
            for role in get_args(Role)
            for index in range(self._cluster.shards_of(role))
        }
        used = (configured | {*present}).difference(before)
        used.update(shard for shards in self._given.values() for shard in shards)
        given: list[str] = []
        for role in roles_wanted(self._cluster, asked, used):
            own = [shard for shard in before if shard.startswith(f"{role}-")]
            free = (f"{role}-{number}" for number in range(len(used) + len(given) + 1))
            taken = used.union(given)
            given.append(next(shard for shard in (*own, *free) if shard not in taken))
        self._given[machine] = tuple(given)
        return self._given[machine]

    def free(self, machine: str) -> tuple[str, ...]:
        """Let others have a machine's ids, which are returned."""
        return self._given.pop(machine, ())
