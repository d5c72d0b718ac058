"""The simulated machines: what shards compute, and their links."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from sps2.cli.simulator.clock import Clock
from sps2.cli.simulator.compute import Host, Unit
from sps2.cli.simulator.decoding import Batch
from sps2.cli.simulator.decoding import Sequence as Answer
from sps2.cli.simulator.links import Link
from sps2.cli.simulator.profile import Profile


class Machines:
    """Shards that compute as a profile says, on a clock.

    Args:
        shards: their names.
        moved_bytes: that a token needs over its owner's link for each other holder of its keys.
    """

    def __init__(
        self, clock: Clock, profile: Profile, shards: Sequence[str], moved_bytes: float
    ) -> None:
        self.clock = clock
        self.profile = profile
        self.steps: dict[int, float] = defaultdict(float)
        """Tokens by the time of their decode step; see `decoding.step_times`."""
        self._keys: dict[str, float] = defaultdict(float)
        self._dead: set[str] = set()
        """Shards that compute nothing."""
        move_s = moved_bytes / (profile.link_gbit * 1.25e8)
        self.units = {
            shard: Unit(
                shard, Batch(shard, profile, self._keys, self.steps, self._dead, move_s), self._dead
            )
            for shard in shards
        }
        self.links = {shard: Link(clock, profile.link_gbit) for shard in shards}
        together = [[*self.units.values()]] if profile.cores else [[u] for u in self.units.values()]
        for units in together:
            Host(clock, profile.cores or 1.0, units)

    def decode(self, owner: str, answer: Answer) -> None:
        """Have an owner decode an answer."""
        self._advance()
        self.units[owner].host.advance()
        self.units[owner].batch.add(answer)
        self._schedule(owner, answer)

    def stop(self, owner: str, answer: Answer) -> None:
        """Have an owner decode an answer no more."""
        self._advance()
        self.units[owner].batch.remove(answer)
        self._schedule(owner, answer)

    def left(self, owner: str, answer: Answer) -> None:
        """An answer has left its owner's batch by itself."""
        if len(answer.held) > 1:
            self._schedule(owner, answer)

    def kill(self, shard: str) -> None:
        """A shard computes nothing from now on, and nobody can go on who needs it."""
        self._change(lambda: self._dead.add(shard))

    def revive(self, shard: str) -> None:
        """It computes again."""
        self._change(lambda: self._dead.discard(shard))

    def _change(self, change: Callable[[], None]) -> None:
        hosts = {unit.host: None for unit in self.units.values()}
        for host in hosts:
            host.advance()
        change()
        for host in hosts:
            host.schedule()

    def _advance(self) -> None:
        for host in {unit.host for unit in self.units.values() if len(unit.batch)}:
            host.advance()

    def _schedule(self, owner: str, answer: Answer) -> None:
        """Of all whose steps take another time now."""
        hosts = {
            unit.host: None for unit in self.units.values() if unit.batch.involves(answer.held)
        }
        for host in hosts | {self.units[owner].host: None}:
            host.advance()
            host.schedule()
