"""Computing time of shards: who of a shard's prefills and decode steps gets how much of it."""

from collections.abc import Callable, Sequence
from math import inf, ulp

from sps2.cli.simulator.clock import Clock, Timer
from sps2.cli.simulator.decoding import Batch
from sps2.common.messages.prefill import LEAST_SHARE

DONE_S = 1e-9


class Work:
    """A rank's part of a prefill.

    Args:
        seconds: of one thread. threads: that compute it. speed: with all of them, as a multiple.
        shares_steps: whether the shard's decode steps run in its passes.
        shared_rows: rows in passes that other prompts of the shard share; 0: it shares none.
        is_piece: whether nothing preempts it once it has begun.
        ended: called when it is done.
    """

    def __init__(
        self,
        seconds: float,
        urgency: float,
        ended: Callable[[], None],
        threads: float = 1.0,
        speed: float = 1.0,
        shares_steps: bool = False,
        shared_rows: int = 0,
        is_piece: bool = False,
    ) -> None:
        self.whole_s = self.left_s = seconds
        self.urgency = urgency
        self.ended = ended
        self.threads = threads
        self.speed = speed
        self.shares_steps = shares_steps
        self.shared_rows = shared_rows
        self.is_piece = is_piece
        self.has_begun = False
        self.pace = 0.0
        """Seconds of its work done in a second."""
        self.started_s = 0.0
        self.stopped_s = 0.0
        self.held: list[tuple[float, float]] = []
        """When more urgent prefills held it back: from, until."""
        self._held_since_s: float | None = None

    def hold(self, is_held: bool, now_s: float) -> None:
        """Note whether a more urgent prefill holds it back from now on."""
        if is_held and self._held_since_s is None:
            self._held_since_s = now_s
        elif not is_held and self._held_since_s is not None:
            self.held.append((self._held_since_s, now_s))
            self._held_since_s = None

    def stop(self, now_s: float) -> None:
        """Note that it is computed no more."""
        self.hold(False, now_s)
        self.stopped_s = now_s

    @property
    def claim(self) -> float:
        """Its urgency, which nothing exceeds once a single piece has begun."""
        return inf if self.is_piece and self.has_begun else self.urgency

    @property
    def done(self) -> float:
        """The share that is done."""
        return 1 - max(0.0, self.left_s) / self.whole_s if self.whole_s else 1.0


class Unit:
    """What one shard computes: prefills, and the decode steps of its batch."""

    def __init__(self, shard: str, batch: Batch, dead: set[str]) -> None:
        self.shard = shard
        self._dead = dead
        self.works: list[Work] = []
        self.batch = batch
        self.batch_pace = 0.0
        self.host: Host
        """Where it computes."""

    @property
    def is_dead(self) -> bool:
        return self.shard in self._dead

    @property
    def sharing(self) -> list[Work]:
        """The prefills in whose passes decode steps run."""
        return [work for work in self.works if work.shares_steps]


class Host:
    """The cores that some shards compute on.

    Each shard has a thread for prefills, and its decode steps keep `Profile.step_threads` busy; if
    more threads have work than there are cores, all are slowed alike. Of the prefills on one shard
    the most urgent ones share the time, but for `LEAST_SHARE` of it, which the others get, as in
    `services/prefill`.
    """

    def __init__(self, clock: Clock, cores: float, units: Sequence[Unit]) -> None:
        self._clock = clock
        self._cores = cores
        self._units = units
        self._since_s = 0.0
        self._timer: Timer | None = None
        for unit in units:
            unit.host = self

    def add(self, unit: Unit, work: Work) -> None:
        """Begin a rank's part of a prefill."""
        self.advance()
        work.started_s = self._clock.now_s
        unit.works.append(work)
        self.schedule()

    def drop(self, unit: Unit, work: Work) -> None:
        """End a rank's part early; its end is not reported."""
        self.advance()
        if work in unit.works:
            unit.works.remove(work)
            work.stop(self._clock.now_s)
        self.schedule()

    def advance(self) -> None:
        """Do the work of the time since the last call."""
        elapsed = self._clock.now_s - self._since_s
        self._since_s = self._clock.now_s
        if elapsed <= 0:
            return
        for unit in self._units:
            for work in unit.works:
                work.left_s -= elapsed * work.pace
            if len(unit.batch):
                unit.batch.advance(elapsed * unit.batch_pace, elapsed)

    def schedule(self) -> None:
        """Share the cores anew, and wait for the next end of something; after any change."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        next_s = inf
        left = {}
        for unit in self._units:
            if len(unit.batch):
                sharing = unit.sharing
                unit.batch.within_s = sum(each.whole_s for each in sharing) if sharing else None
                left[unit] = unit.batch.plan_steps()
        threads = sum(self._threads(unit) for unit in self._units)
        share = min(1.0, self._cores / threads) if threads else 1.0
        for unit in self._units:
            if unit.works:
                self._pace(unit, share)
                next_s = min([next_s, *(w.left_s / w.pace for w in unit.works if w.pace)])
            if unit in left:
                sharing = unit.sharing
                unit.batch_pace = (
                    sum(each.pace for each in sharing) if sharing else unit.batch.pace(share)
                )
                if unit.batch.is_stalled:
                    unit.batch_pace = 0.0
                if unit.batch_pace:
                    next_s = min(next_s, left[unit] / unit.batch_pace)
        if next_s < inf:
            at_s = self._clock.now_s + max(0.0, next_s)
            self._timer = self._clock.call_at(at_s, self._end)

    @property
    def slowdown(self) -> float:
        """How much longer another thread needs there now than on idle cores."""
        if len(self._units) == 1:
            return 1.0
        return max(1.0, (sum(map(self._threads, self._units)) + 1) / self._cores)

    @staticmethod
    def _threads(unit: Unit) -> float:
        prefill = max((work.threads for work in unit.works), default=0.0)
        decode = unit.batch.threads if len(unit.batch) and not unit.sharing else 0.0
        return prefill + decode

    def _pace(self, unit: Unit, share: float) -> None:
        works = unit.works
        most = max(work.claim for work in works)
        first = sum(work.claim == most for work in works)
        held = len(works) - first
        held_share = LEAST_SHARE if held else 0.0  # live, after the piece that runs
        for work in works:
            part = (1 - held_share) / first if work.claim == most else held_share / held
            work.pace = 0.0 if unit.is_dead else share * part * work.speed
            work.hold(work.claim < most, self._clock.now_s)
        for work in [work for work in works if work.claim == most]:
            work.has_begun |= work.pace > 0

    def _end(self) -> None:
        self._timer = None
        self.advance()
        ended: list[Callable[[], None]] = []
        slack_s = 4 * ulp(self._clock.now_s)  # shorter times do not move the clock
        for unit in self._units:
            over = [work for work in unit.works if work.left_s <= DONE_S + slack_s * work.pace]
            if over:
                unit.works = [work for work in unit.works if work not in over]
                for work in over:
                    work.stop(self._clock.now_s)
                ended += [work.ended for work in over]
            for sequence in unit.batch.take_reached(slack_s * unit.batch_pace):
                ended.append(sequence.ended if sequence.left < 0.5 else sequence.short)
        self.schedule()
        for call in ended:
            call()
