"""Which keys of a decode batch are read for which rows: those in common once for all of them.

Source: RelayAttention (arXiv 2402.14808), for any number of prefixes that rows share, one behind
the other; rows share what lies in the same slots.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from sps2.kernels.state import Run

BLOCK = 64
"""Keys that the kernel meets at once. Where a run goes on behind what is shared, whole blocks are:
so a row's numbers do not depend on whom it shares with."""
LEAST = 2 * BLOCK
"""Keys from which on sharing is worth it."""


class Part(NamedTuple):
    """Keys that `rows` attend to; a row's last part is its own, the others are of several rows."""

    rows: list[int]
    runs: list[Run]

    @property
    def tokens(self) -> int:
        return sum(run.tokens for run in self.runs)


def parts_of(runs: Sequence[Sequence[Run]], positions: Sequence[int]) -> list[list[Part]]:
    """The parts, in levels: a row's parts follow each other from level to level.

    Args:
        runs: of each row, as slots of the pool.
        positions: of the queries; several rows share only what all of them see.
    """
    rest = [list(own) for own in runs]
    levels: list[list[Part]] = []
    groups = [list(range(len(rest)))]
    while groups:
        level: list[Part] = []
        below = []
        for rows, tokens in itertools.chain(*(_sharing(g, rest, positions) for g in groups)):
            level.append(Part(rows, _cut(rest[rows[0]], tokens)[0] if tokens else rest[rows[0]]))
            if tokens:
                below.append(rows)
            for row in rows:
                rest[row] = _cut(rest[row], tokens)[1]
        levels.append(level)
        groups = below
    return levels


def alone(runs: Sequence[Sequence[Run]]) -> list[list[Part]]:
    """As `parts_of`, with nothing shared."""
    return [[Part([row], list(own)) for row, own in enumerate(runs)]]


class Plan:
    """Parts as the native kernel reads them: int64 tensors, offsets with the end behind."""

    def __init__(self, levels: Sequence[Sequence[Part]]) -> None:
        parts = [part for level in levels for part in level]
        self.levels = _offsets(len(level) for level in levels)
        self.rows = torch.tensor([row for part in parts for row in part.rows], dtype=torch.int64)
        self.row_offsets = _offsets(len(part.rows) for part in parts)
        runs = [run for part in parts for run in part.runs]
        self.runs = torch.tensor(runs, dtype=torch.int64).view(-1, 3)
        self.run_offsets = _offsets(len(part.runs) for part in parts)
        self.queries = max((row for part in parts for row in part.rows), default=-1) + 1
        """How many rows a batch has at least."""
        self.slots = max((run.slot + run.tokens for run in runs), default=0)
        """How many slots a pool has at least."""


class PagedRows:
    """Where the keys of each row of a decode batch lie: made once, used in every layer.

    Args:
        runs: of each row's own sequence, as slots of the pool.
        positions: of the queries.
    """

    def __init__(self, runs: Sequence[Sequence[Run]], positions: Sequence[int]) -> None:
        self.positions = positions
        self.keys = sum(run.tokens for own in runs for run in own)
        """That the rows attend to, in a layer without a window."""
        self.at = torch.tensor(positions, dtype=torch.int64)
        self.runs = runs
        self._shared = parts_of(runs, positions)
        self.keys_read = sum(part.tokens for level in self._shared for part in level)
        """As `keys`, but those that rows share counted once."""
        self._reach = max(
            (
                positions[row] + 1 - part.runs[0].start
                for level in self._shared[:-1]
                for part in level
                for row in part.rows
                if part.runs
            ),
            default=0,
        )
        self._plans: dict[bool, Plan] = {}

    def parts(self, window: int | None) -> list[list[Part]]:
        """What is read for which rows; a window that hides shared keys from some leaves none."""
        return self._shared if self._shares(window) else alone(self.runs)

    def plan(self, window: int | None) -> Plan:
        """`parts` for the native kernel."""
        shares = self._shares(window)
        if shares not in self._plans:
            self._plans[shares] = Plan(self.parts(window))
        return self._plans[shares]

    def _shares(self, window: int | None) -> bool:
        return window is None or self._reach <= window


def _offsets(counts: Iterable[int]) -> torch.Tensor:
    return torch.tensor([*itertools.accumulate(counts, initial=0)], dtype=torch.int64)


def _sharing(
    rows: Sequence[int],
    runs: Sequence[Sequence[Run]],
    positions: Sequence[int],
    known: int = 0,
) -> Iterable[tuple[list[int], int]]:
    """Rows, and how many tokens they begin with in common; 0 of each that shares nothing.

    Args:
        known: what all of them have in common at least.
    """
    groups: dict[object, list[int]] = {}
    for row in rows:
        rest = _cut(runs[row], known)[1]
        groups.setdefault(rest[0][:2] if rest else None, []).append(row)
    for group in groups.values():
        common = _common([runs[row] for row in group], min(positions[row] for row in group) + 1)
        whole = _whole([runs[row] for row in group], common)
        if len(group) > 1 and whole >= LEAST:
            yield group, whole
        elif len(group) > 1 and common > known:
            yield from _sharing(group, runs, positions, common)
        else:
            yield from (([row], 0) for row in group)


def _common(runs: Sequence[Sequence[Run]], stop: int) -> int:
    """Tokens that all begin with, of positions before `stop`."""
    common = 0
    for at in zip(*runs, strict=False):
        slot, start, _ = at[0]
        if any(run[:2] != (slot, start) for run in at):
            break
        tokens = min(stop - start, *(run.tokens for run in at))
        common += max(0, tokens)
        if any(run.tokens != tokens for run in at):
            break
    return common


def _whole(runs: Sequence[Sequence[Run]], tokens: int) -> int:
    """So many of the first `tokens` that no run is cut but between blocks."""
    before = 0
    for at in zip(*runs, strict=False):
        if before + max(run.tokens for run in at) > tokens:
            return before + (tokens - before) // BLOCK * BLOCK
        before += at[0].tokens
    return before


def _cut(runs: Sequence[Run], tokens: int) -> tuple[list[Run], list[Run]]:
    """The first `tokens`, and the others."""
    first, rest = [], []
    for slot, start, count in runs:
        here = min(tokens, count)
        tokens -= here
        if here:
            first.append(Run(slot, start, here))
        if here < count:
            rest.append(Run(slot + here, start + here, count - here))
    return first, rest
