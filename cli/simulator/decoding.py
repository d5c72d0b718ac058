"""Decode steps of a shard, many at once: between two changes of its batch, they have a formula."""

from collections import Counter
from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from math import exp, inf, log, sqrt

from sps2.cli.simulator.profile import Profile

STEP_PRECISION = 0.02
"""Times of steps are counted in classes of this relative width."""
REACHED = 1e-6


class Sequence:
    """An answer that grows.

    Args:
        held: keys of its prompt by shard, those of its owner included.
        tokens: that are still to be decoded.
        room: for how many tokens its owner has pages.
        ended: called when all are decoded. short: called when its room is used up before.
    """

    def __init__(
        self,
        held: Mapping[str, int],
        tokens: int,
        room: int,
        ended: Callable[[], None],
        short: Callable[[], None],
    ) -> None:
        self.held = held
        self.left = float(tokens)
        self.room = float(room)
        self.ended = ended
        self.short = short
        self.joined_at = 0.0
        """Steps of the batch when it joined."""
        self.is_active = False


class Batch:
    """The answers that one shard decodes as their owner.

    A step takes what its sequences take, and attention to the keys of the involved shard that has
    most: each of them attends to the keys of all answers that it keeps KV for.

    Args:
        keys: active keys by shard, for all batches of a cluster.
        steps: counts tokens by the time of their step, for all batches.
        dead: shards that answer nothing.
        move_s: of a step on its owner's link, for each sequence and other holder of its keys.
    """

    def __init__(
        self,
        shard: str,
        profile: Profile,
        keys: dict[str, float],
        steps: dict[int, float],
        dead: set[str],
        move_s: float,
    ) -> None:
        self.shard = shard
        self.within_s: float | None = None
        """Seconds of a pass that steps are part of now; None: they run by themselves."""
        self.token_s = 0.0
        """Seconds that sequences have spent in the batch, added up."""
        self._profile = profile
        self._keys = keys
        self._times = steps
        self._dead = dead
        self._move_s = move_s
        self._moves = 0
        """Other holders of the keys of its sequences, added up."""
        self._steps = 0.0
        self._sequences: set[Sequence] = set()
        self._involved: Counter[str] = Counter()
        self._boundaries: list[tuple[float, int, Sequence]] = []
        self._number = 0
        self._step_s = 0.0
        self._wait_s = 0.0
        """Of a step, in which it waits for other shards, and needs no core."""
        self._growth_s = 0.0

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def is_stalled(self) -> bool:
        """Whether a shard that it needs is dead."""
        return bool(self._dead) and any(shard in self._dead for shard in self._involved)

    @property
    def step_s(self) -> float:
        """Seconds of a step by itself; 0 without sequences."""
        return self._step_s if self._sequences and self.within_s is None else 0.0

    @property
    def threads(self) -> float:
        """Cores that its steps keep busy, on average."""
        computing = 1 - self._wait_s / self._step_s if self._step_s else 1.0
        return self._profile.step_threads * computing

    def pace(self, share: float) -> float:
        """Seconds of its steps in a second, if it gets this share of the cores that it needs."""
        return self._step_s / ((self._step_s - self._wait_s) / share + self._wait_s)

    def involves(self, shards: Mapping[str, int]) -> bool:
        """Whether it attends to keys on one of these shards."""
        return bool(self._sequences) and any(shard in self._involved for shard in shards)

    def add(self, sequence: Sequence) -> None:
        self._sequences.add(sequence)
        sequence.joined_at, sequence.is_active = self._steps, True
        self._moves += len(sequence.held) - 1
        for shard, keys in sequence.held.items():
            self._keys[shard] += keys
            self._involved[shard] += 1
        self._number += 1
        bound = self._steps + min(sequence.left, sequence.room)
        heappush(self._boundaries, (bound, self._number, sequence))

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out; its counts then say how far it is."""
        if not sequence.is_active:
            return
        done = self._steps - sequence.joined_at
        sequence.left -= done
        sequence.room -= done
        sequence.is_active = False
        self._sequences.discard(sequence)
        self._moves -= len(sequence.held) - 1
        for shard, keys in sequence.held.items():
            self._keys[shard] -= keys
            self._involved[shard] -= 1
            if not self._involved[shard]:
                del self._involved[shard]
        grown = {**sequence.held}
        grown[self.shard] = grown.get(self.shard, 0) + round(done)
        self._keys[self.shard] -= done
        sequence.held = grown

    def advance(self, seconds: float, wall_s: float) -> None:
        """Decode for `seconds` of computing, which were `wall_s` of time."""
        count = len(self._sequences)
        if not count or seconds <= 0:
            return
        growth, step_s = self._growth_s, self._step_s
        if growth:
            steps = (sqrt(step_s * step_s + 2 * growth * seconds) - step_s) / growth
        else:
            steps = seconds / step_s
        self._steps += steps
        self._step_s += growth * steps
        self._keys[self.shard] += steps * count
        self.token_s += wall_s * count
        if steps > 0:
            self._times[round(log(wall_s / steps) / STEP_PRECISION)] += steps * count

    def take_reached(self, within_s: float) -> list[Sequence]:
        """Remove the sequences that are complete or need room in `within_s`, and return them."""
        found = []
        reached = self._steps + REACHED + (within_s / self._step_s if self._step_s else 0.0)
        while self._boundaries and (
            not self._boundaries[0][2].is_active or self._boundaries[0][0] <= reached
        ):
            sequence = heappop(self._boundaries)[2]
            if sequence.is_active:
                self.remove(sequence)
                found.append(sequence)
        return found

    def plan_steps(self) -> float:
        """Compute what a step takes now; returns the seconds of computing to the next boundary."""
        while self._boundaries and not self._boundaries[0][2].is_active:
            heappop(self._boundaries)
        if not self._sequences:
            return inf
        count = len(self._sequences)
        if self.within_s is not None:
            self._step_s, self._growth_s, self._wait_s = self.within_s, 0.0, 0.0
        else:
            most = max(self._keys[shard] for shard in self._involved)
            is_spread = len(self._involved) > 1
            computing_s = self._profile.decode_s(count, most, False)
            self._wait_s = is_spread * self._profile.remote_s + self._moves * self._move_s
            self._step_s = computing_s + self._wait_s
            self._growth_s = self._profile.key_s * count
        steps = self._boundaries[0][0] - self._steps
        return max(0.0, steps * (self._step_s + self._growth_s * steps / 2))

    def step_with(self, rows: int, pairs: float) -> float:
        """Seconds of a pass that has a step of the batch and `rows` rows of a prompt."""
        profile, keys = self._profile, self._keys[self.shard] if self._sequences else 0.0
        return profile.prefill_s(rows + len(self), pairs) + keys * profile.key_s


def step_times(counted: Mapping[int, float]) -> dict[float, float]:
    """Tokens by the time of their step in seconds."""
    return {exp(number * STEP_PRECISION): tokens for number, tokens in sorted(counted.items())}
