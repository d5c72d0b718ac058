"""Plans which keys of a decode batch are read for which rows: shared keys once for all of them.

Source: RelayAttention (arXiv 2402.14808), extended to any number of consecutive shared prefixes.
Rows share keys that are in the same slots.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from sps2.kernels.state import Run

BLOCK = 64
"""Keys that the kernel processes at a time. If a run continues after the shared keys, only whole
blocks are shared, so that a row's result does not depend on the other rows."""
LEAST = 2 * BLOCK
"""Number of keys from which on sharing pays."""


class Part(NamedTuple):
    """Keys that `rows` attend to. Each row's last part is its own; the others are shared."""

    rows: list[int]
    runs: list[Run]

    @property
    def tokens(self) -> int:
        return sum(run.tokens for run in self.runs)


def parts_of(runs: Sequence[Sequence[Run]], positions: Sequence[int]) -> list[list[Part]]:
    """The parts in levels: each level has the next part of every row.

    Args:
        runs: the keys of each row, as slots of the pool.
        positions: of the queries; rows share only keys that all of them see.
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
    """As `parts_of`, but without sharing."""
    return [[Part([row], list(own)) for row, own in enumerate(runs)]]


class Plan:
    """Parts as int64 tensors for the native kernel; offsets include the end."""

    def __init__(self, levels: Sequence[Sequence[Part]]) -> None:
        parts = [part for level in levels for part in level]
        self.levels = _offsets(len(level) for level in levels)
        self.rows = torch.tensor([row for part in parts for row in part.rows], dtype=torch.int64)
        self.row_offsets = _offsets(len(part.rows) for part in parts)
        runs = [run for part in parts for run in part.runs]
        self.runs = torch.tensor(runs, dtype=torch.int64).view(-1, 3)
        self.run_offsets = _offsets(len(part.runs) for part in parts)
        self.queries = max((row for part in parts for row in part.rows), default=-1) + 1
        """Minimum of rows of a batch."""
        self.slots = max((run.slot + run.tokens for run in runs), default=0)
        """Minimum of slots of a pool."""


class PagedRows:
    """The slots of the keys of each row of a decode batch; made once, used in every layer.

    Args:
        runs: the keys of each row's sequence, as slots of the pool.
        positions: of the queries.
    """

    def __init__(self, runs: Sequence[Sequence[Run]], positions: Sequence[int]) -> None:
        self.positions = positions
        self.keys = sum(run.tokens for own in runs for run in own)
        """Number of keys that the rows attend to, in a layer without a window."""
        self.at = torch.tensor(positions, dtype=torch.int64)
        self.runs = runs
        self._shared = parts_of(runs, positions)
        self.keys_read = sum(part.tokens for level in self._shared for part in level)
        """As `keys`, but keys that rows share are counted once."""
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
        """The parts for a window; nothing is shared if it hides shared keys from some rows."""
        return self._shared if self._shares(window) else alone(self.runs)

    def plan(self, window: int | None) -> Plan:
        """`parts` as tensors for the native kernel."""
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
    """Groups of rows, with the number of first tokens that they share; 0 for a single row.

    Args:
        known: number of tokens that all of them are known to share.
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
    """Number of first tokens that all runs share, at positions before `stop`."""
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
    """The largest number up to `tokens` that cuts runs only between blocks."""
    before = 0
    for at in zip(*runs, strict=False):
        if before + max(run.tokens for run in at) > tokens:
            return before + (tokens - before) // BLOCK * BLOCK
        before += at[0].tokens
    return before


def _cut(runs: Sequence[Run], tokens: int) -> tuple[list[Run], list[Run]]:
    """Split runs into the first `tokens` and the rest."""
    first, rest = [], []
    for slot, start, count in runs:
        here = min(tokens, count)
        tokens -= here
        if here:
            first.append(Run(slot, start, here))
        if here < count:
            rest.append(Run(slot + here, start + here, count - here))
    return first, rest
