"""What shards did in a run, for its timeline."""

from collections.abc import Mapping

from sps2.cli.simulator.clock import Clock
from sps2.cli.simulator.compute import Unit
from sps2.cli.simulator.outcomes import Activity

BUCKET_S = 1.0
"""Decoding is recorded in buckets of this length, which doubles after every `BUCKETS`."""
BUCKETS = 2000


class ShardHistory:
    """Records prefills and losses as they end, and decoding in buckets of time."""

    def __init__(self, clock: Clock, units: Mapping[str, Unit]) -> None:
        self.activities: list[Activity] = []
        self._clock = clock
        self._units = units
        self._before = dict.fromkeys(units, 0.0)
        self._since_s: float | None = None
        """When the bucket began; None: nothing is decoded."""
        self._bucket_s = BUCKET_S
        self._buckets = 0

    def watch(self) -> None:
        """Decoding may have begun."""
        if self._since_s is None:
            self._since_s = self._clock.now_s
            self._clock.call_at(self._since_s + self._bucket_s, self._close)

    def _close(self) -> None:
        assert self._since_s is not None
        now_s, is_active = self._clock.now_s, False
        for shard, unit in self._units.items():
            if len(unit.batch):
                unit.host.advance()
                unit.host.schedule()
                is_active = True
            spent_s = unit.batch.token_s - self._before[shard]
            if spent_s > 0:
                self._before[shard] = unit.batch.token_s
                mean = spent_s / (now_s - self._since_s)
                decoded = Activity(shard, "decode", self._since_s, now_s, sequences=mean)
                self.activities.append(decoded)
        self._buckets += 1
        if self._buckets % BUCKETS == 0:
            self._bucket_s *= 2
        self._since_s = now_s if is_active else None
        if is_active:
            self._clock.call_at(now_s + self._bucket_s, self._close)
