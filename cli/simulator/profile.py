"""What a cluster's hardware takes for a model's prefills and decode steps."""

from bisect import bisect_left
from math import inf
from pathlib import Path

import msgspec

from sps2.common.errors import Invalid
from sps2.common.validation import MALFORMED

TIMES = ("launch_s", "pair_s", "share_s", "key_s", "remote_s", "link_latency_s")
"""Constants that are seconds."""
LONGEST_S = 1e6
Curve = tuple[tuple[int, float], ...]
"""Points (count, seconds) in the order of count, at least one; straight lines join them."""


class Checked(msgspec.Struct, frozen=True):
    """How far predictions from a profile were from measurements that it was not fitted to.

    error: mean of |predicted - measured| / measured. low, high: its 95 % interval (bootstrap).
    residuals: predicted / measured of every point.
    """

    error: float
    low: float
    high: float
    residuals: tuple[float, ...]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of one shard's work for one model, from which the simulator computes what runs take.

    name: for people. model: name or shape of the model. fingerprint: of the weights that were
        measured; empty: not measured. machine: for people. is_measured: whether it was measured on
        that machine; otherwise the constants are from data sheets and public measurements.
    sources: where each constant is from, by field, with a URL or a command.
    margin: half the width of the 95 % interval of a predicted time, as a share of it, for times
        without a row in `checks`.
    """

    name: str
    model: str
    machine: str
    is_measured: bool
    sources: dict[str, str]
    margin: float
    fingerprint: str = ""

    launch_s: float
    """Of every request, from its arrival to the beginning of its prefill, and from the end of that
    to its first token at the client."""
    pass_s: Curve
    """A pass through all layers by number of rows, without attention to earlier rows."""
    pair_s: float
    """Attention of a prefill, per pair of a query and a key, all layers and heads."""
    share_s: float
    """Added to a prefill that several shards share: its waits for the others."""
    step_s: Curve
    """A decode step by number of sequences, without attention."""
    key_s: float
    """Attention of a decode step, per key of each sequence, all layers and heads."""
    remote_s: float
    """Added to a decode step whose keys are on other shards too."""
    link_gbit: float
    """Of a shard's link, each way."""
    link_latency_s: float
    cores: float = 0.0
    """Cores that all shards share, each of which uses one; 0: shards do not share any."""
    step_threads: float = 1.0
    """Cores that decode steps of one shard keep busy while they do not wait for other shards: its
    thread, and the services that pass tokens on."""
    prefix_s: float | None = None
    """Added to a prefill behind keys on another shard: its waits for that one. None: as
    `remote_s`."""
    prefix_pair_s: float | None = None
    """Attention to keys on another shard, per pair. None: as `pair_s`."""
    busy_prefill: float = 1.0
    """How much longer a prefill takes while shards of the same machine have other work, besides
    sharing cores with them: they share caches, and memory's bandwidth."""
    lent_gain: float = 0.4
    """What a thread that an idle shard lends adds to the speed of a prefill of one shard, as a
    share of that of its own thread. 0.15 to 0.47 were measured on two cores, for 8 to 250
    tokens."""
    lone_s: float = 0.0
    """TTFT of a short prompt alone, as measured: by it a machine that is faster or slower later is
    known. 0: not measured."""
    checks: dict[str, Checked] = {}
    """By what was predicted: `ttft`, `tbt`."""

    def prefill_s(self, rows: int, pairs: float) -> float:
        """Seconds of one shard alone for `rows` rows that attend to `pairs` pairs."""
        return at(self.pass_s, rows) + pairs * self.pair_s

    def behind_s(self, pairs: float) -> float:
        """Seconds in which another shard attends to `pairs` pairs of a prefill's queries and its
        own keys."""
        return pairs * (self.pair_s if self.prefix_pair_s is None else self.prefix_pair_s)

    @property
    def waits_behind_s(self) -> float:
        """Seconds in which a prefill waits for shards with keys of its prefix."""
        return self.remote_s if self.prefix_s is None else self.prefix_s

    def slowed(self, factor: float) -> "Profile":
        """The profile of a machine on which everything takes `factor` times as long."""

        def slower(seconds: float | None) -> float | None:
            return None if seconds is None else seconds * factor

        names = ("launch_s", "pair_s", "share_s", "key_s", "remote_s", "prefix_s", "prefix_pair_s")
        times = {name: slower(getattr(self, name)) for name in names}
        curves = {
            name: tuple((count, seconds * factor) for count, seconds in getattr(self, name))
            for name in ("pass_s", "step_s")
        }
        return msgspec.structs.replace(self, **times, **curves)

    def decode_s(self, sequences: float, keys: float, is_spread: bool) -> float:
        """Seconds of one decode step of `sequences` sequences with `keys` keys on the shard that
        has most of them. is_spread: whether other shards have some."""
        return at(self.step_s, sequences) + keys * self.key_s + is_spread * self.remote_s


def at(curve: Curve, count: float) -> float:
    """The seconds at a count; beyond its ends a curve goes on straight, and never below zero."""
    if len(curve) == 1:
        return curve[0][1] * count / curve[0][0]
    right = min(max(1, bisect_left(curve, (count, 0.0))), len(curve) - 1)
    (x, y), (to_x, to_y) = curve[right - 1], curve[right]
    return max(0.0, y + (to_y - y) * (count - x) / (to_x - x))


def read_profile(path: Path) -> Profile:
    """Read a profile that `spsctl profile` wrote.

    Raises:
        OSError: it cannot be read.
        Invalid: it is none, or has a constant that cannot be; the message names it.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Profile)
    except MALFORMED as error:
        raise Invalid(f"{path}: not a profile of `spsctl profile`: {error}") from error
    for name in ("pass_s", "step_s"):
        check_curve(getattr(found, name), f"{path}: {name}")
    for name in TIMES:
        if not 0 <= getattr(found, name) <= LONGEST_S:
            raise Invalid(f"{path}: {name} is {getattr(found, name):g}, and should be 0 s or more")
    if not 0 < found.link_gbit < inf:
        raise Invalid(f"{path}: link_gbit is {found.link_gbit:g}, and should be over 0")
    if not 0 <= found.margin <= 1:
        raise Invalid(f"{path}: margin is {found.margin:g}, and should be from 0 to 1")
    if not 1 <= found.step_threads < inf:
        raise Invalid(f"{path}: step_threads is {found.step_threads:g}, and should be 1 or more")
    for name in ("prefix_s", "prefix_pair_s"):
        if not 0 <= (getattr(found, name) or 0.0) <= LONGEST_S:
            raise Invalid(f"{path}: {name} is {getattr(found, name):g}, and should be 0 s or more")
    if not 1 <= found.busy_prefill < inf:
        raise Invalid(f"{path}: busy_prefill is {found.busy_prefill:g}, and should be 1 or more")
    if not 0 <= found.lent_gain <= 1:
        raise Invalid(f"{path}: lent_gain is {found.lent_gain:g}, and should be from 0 to 1")
    if not 0 <= found.cores < inf:
        raise Invalid(f"{path}: cores is {found.cores:g}, and should be 0 or more")
    return found


def check_curve(curve: Curve, where: str) -> None:
    """Raises Invalid unless counts are positive and rise, and seconds are positive and do not fall.

    Args:
        where: the curve is, for the message.
    """
    counts, seconds = [count for count, _ in curve], [each for _, each in curve]
    if not counts or counts[0] < 1 or counts != sorted(set(counts)):
        raise Invalid(f"{where} needs points with rising counts from 1 on")
    if not all(0 < each <= LONGEST_S for each in seconds) or seconds != sorted(seconds):
        raise Invalid(f"{where} needs seconds over 0 that do not fall")
