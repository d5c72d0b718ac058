"""The links of shards, as they were measured: by probes, and by what prefills move."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from sps2.services.scheduler.hardware import Wire

ALIKE = 2.0
"""Links whose rates differ by no more than this factor count as alike; a change by less is noise.
The latency of links that count as alike differs by at most as much, or is up to `PROMPT_S`."""
PROMPT_S = 0.0005
"""Seconds of latency that matter to no prompt: an event loop on a busy core takes as long."""
STEPS = 2
"""Rates are rounded to 2 to the power of one over this, so that plans can be kept."""


class Path(NamedTuple):
    """The way from one shard to another: its rate, its latency in seconds, when it was measured."""

    gbit: float
    latency_s: float
    at_s: float


class Links:
    """What is known of the ways between shards, and what follows for the link of each shard.

    The link of a shard is as good as the best of its paths, in the worse direction: of a path that
    is slow, either end may be the cause. Only some paths are ever measured. When one has become
    slower, what was known of better paths of both ends is forgotten, and both are `doubted` until a
    probe shows which of them is slow.
    """

    def __init__(
        self, paths: dict[str, dict[str, Path]] | None = None, doubted: Iterable[str] = ()
    ) -> None:
        self._paths = paths or {}
        self._relative: tuple[tuple[str, ...], dict[str, Wire]] | None = None
        self.doubted = list(doubted)
        """Shards that are to be probed at once."""

    def state(self) -> dict[str, dict[str, Path]]:
        """A copy of all paths, by their ends."""
        return {source: dict(own) for source, own in self._paths.items()}

    def forget(self, shard: str) -> None:
        """A shard has left, or begins a new life: nothing is known of it."""
        self._relative = None
        self._paths.pop(shard, None)
        for own in self._paths.values():
            own.pop(shard, None)
        if shard in self.doubted:
            self.doubted.remove(shard)

    def probed(self, source: str, target: str, found: Path) -> None:
        """A path was measured by a probe; a rate near that before is averaged with it."""
        before = self._paths.get(source, {}).get(target)
        if before and 1 / ALIKE <= found.gbit / before.gbit <= ALIKE:
            rate = math.sqrt(before.gbit * found.gbit)
            found = Path(rate, (before.latency_s + found.latency_s) / 2, found.at_s)
        self._set(source, target, found)

    def moved(self, source: str, target: str, gbit: float, now_s: float) -> None:
        """A prefill moved a lot over a path, at this rate; others may have shared the links."""
        if self.confirmed(source, target, gbit, now_s):
            return
        before = self._paths.get(source, {}).get(target)
        self._set(source, target, Path(gbit, before.latency_s if before else PROMPT_S, now_s))
        if before:
            self._doubt(source, target, now_s)

    def confirmed(self, source: str, target: str, gbit: float, now_s: float) -> bool:
        """Whether a path is no faster than this rate, which it just had; then it is as known."""
        before = self._paths.get(source, {}).get(target)
        if before is None or gbit * ALIKE < before.gbit:
            return False
        self._paths[source][target] = before._replace(at_s=now_s)
        return True

    def best(self, shards: Iterable[str]) -> tuple[float | None, float | None]:
        """The rate (Gbit/s) and the latency (seconds) of the best link; None if none is known."""
        known = [link for shard in shards if (link := self.of(shard))]
        if not known:
            return None, None
        return (
            _rounded(max(gbit for gbit, _ in known), STEPS),
            _rounded(max(1e-6, min(latency_s for _, latency_s in known)), 1),
        )

    def relative(self, shards: tuple[str, ...]) -> dict[str, Wire]:
        """The link of each shard relative to the best of them; empty if all are alike.

        One that was never measured counts as the best.
        """
        if self._relative is None or self._relative[0] != shards:
            self._relative = shards, self._compare(shards)
        return self._relative[1]

    def of(self, shard: str) -> tuple[float, float] | None:
        """The rate (Gbit/s) and the latency (seconds) of a shard's link; None if not measured."""
        own = self._paths.get(shard, {})
        back = {source: paths[shard] for source, paths in self._paths.items() if shard in paths}
        both = [
            [path for path in (own.get(other), back.get(other)) if path]
            for other in own.keys() | back.keys()
        ]
        if not both:
            return None
        return (
            max(min(path.gbit for path in paths) for paths in both),
            min(path.latency_s for paths in both for path in paths),
        )

    def measured_s(self, source: str, target: str) -> float:
        """When a path was measured; minus infinity if never."""
        path = self._paths.get(source, {}).get(target)
        return path.at_s if path else -math.inf

    def _compare(self, shards: tuple[str, ...]) -> dict[str, Wire]:
        known = {shard: link for shard in shards if (link := self.of(shard))}
        if not known:
            return {}
        best = max(gbit for gbit, _ in known.values())
        least_s = min(latency_s for _, latency_s in known.values())
        near_s = max(ALIKE * least_s, PROMPT_S)
        found = {
            shard: Wire(
                1.0 if gbit * ALIKE >= best else _rounded(gbit / best, STEPS),
                1.0 if latency_s <= near_s else _rounded(latency_s / max(least_s, 1e-6), 1),
            )
            for shard, (gbit, latency_s) in known.items()
        }
        if set(found.values()) == {Wire()}:
            return {}
        return {shard: found.get(shard, Wire()) for shard in shards}

    def _set(self, source: str, target: str, path: Path) -> None:
        self._relative = None
        self._paths.setdefault(source, {})[target] = path

    def _doubt(self, source: str, target: str, now_s: float) -> None:
        """Forget older and better paths of both ends: one of the two is slow now."""
        most = ALIKE * self._paths[source][target].gbit
        for one, own in self._paths.items():
            for other, path in [*own.items()]:
                is_older = path.gbit > most and path.at_s < now_s
                if is_older and {one, other} & {source, target}:
                    del own[other]
        self.doubted += [end for end in (source, target) if end not in self.doubted]


def _rounded(value: float, steps: int) -> float:
    return float(2 ** (round(math.log2(value) * steps) / steps))
