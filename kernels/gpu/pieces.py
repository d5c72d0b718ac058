"""Cuts the keys of a decode batch into pieces, each the work of one program per KV head."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.kernels.gpu import processors, upload
from sps2.kernels.relay import PagedRows, Part

WAVES = 16
"""Programs per multiprocessor, so that the last ones take a small part of the time."""
LEAST = 256
"""Minimum of keys of a piece of one row: with fewer, writing its state would dominate."""
STEP = 64
"""Pieces are cut at multiples of this number of keys, so that tiles are full."""


class Pieces(NamedTuple):
    """Tables on the device, int32.

    segments: [segments, 2] first slot and number of keys, which all rows of the part see.
    alone, shared: [pieces, 4] first member, number of members, first segment, end of segments;
        pieces of one row, and of several.
    members: [members, 2] row, and the index of its state over the piece.
    offsets: [rows + 1] the first state of each row.
    most: maximum of members of a piece.
    """

    segments: Tensor
    alone: Tensor
    shared: Tensor
    members: Tensor
    offsets: Tensor
    most: int


def cut(
    rows: PagedRows,
    slots: int,
    window: int | None,
    kv_heads: int,
    device: torch.device,
    least: int,
    together: int,
) -> Pieces:
    """Cut the visible keys of all rows into pieces of about equal length, on the host.

    Args:
        slots: number of slots of the pool.
        least: minimum of keys of a piece of one row; for several rows, times their number up to 8.
        together: maximum of rows of a piece.
    """
    parts = [part for level in rows.parts(window) for part in level]
    flat = [run for part in parts for run in part.runs]
    slot, start, tokens = torch.tensor(flat, dtype=torch.int64).view(-1, 3).unbind(1)
    inside = bool(((slot >= 0) & (tokens >= 0) & (slot + tokens <= slots)).all())
    if not inside:
        raise ValueError(f"rows has runs outside the {slots} slots of k_pool")
    runs = torch.tensor([len(part.runs) for part in parts], dtype=torch.int64)
    owner = torch.repeat_interleave(torch.arange(len(parts)), runs)
    stop = torch.minimum(start + tokens, _at(parts, rows, min)[owner] + 1)
    last = _at(parts, rows, max)[owner]
    first = start if window is None else torch.maximum(start, last + 1 - window)
    seen = stop > first
    slot, length, owner = (slot + first - start)[seen], (stop - first)[seen], owner[seen]

    # all visible keys in one sequence: runs begin at `begin`, parts at `base`
    total = torch.zeros(len(parts), dtype=torch.int64).index_add_(0, owner, length)
    begin, base = length.cumsum(0) - length, total.cumsum(0) - total
    users = torch.tensor([len(part.rows) for part in parts], dtype=torch.int64)
    units = -(-users // together)
    fair = -(-int((total * units).sum()) * kv_heads // (WAVES * processors(device)))
    size = (users.clamp(max=min(8, together)) * least).clamp(min=fair)
    split = -(-total // size)
    of = torch.repeat_interleave(torch.arange(len(parts)), split)
    number = torch.arange(len(of)) - (split.cumsum(0) - split)[of]
    step = min(STEP, least)
    starts = base[of] + number * total[of] // split[of] // step * step

    cuts = torch.cat((begin, starts)).unique()
    run = torch.searchsorted(begin, cuts, right=True) - 1
    ends = torch.cat((cuts, total.sum()[None]))[1:]
    segments = torch.stack((slot[run] + cuts - begin[run], ends - cuts), 1)
    into = torch.searchsorted(cuts, torch.cat((starts, total.sum()[None])))
    spans = list(zip(of.tolist(), into[:-1].tolist(), into[1:].tolist(), strict=True))
    return _tables(parts, spans, segments, len(rows.at), together, device)


def _tables(
    parts: list[Part],
    spans: list[tuple[int, int, int]],
    segments: Tensor,
    count: int,
    together: int,
    device: torch.device,
) -> Pieces:
    """The tables of pieces (part, first segment, end), each for up to `together` rows."""
    alone: list[tuple[int, int, int, int]] = []
    shared: list[tuple[int, int, int, int]] = []
    members: list[int] = []
    for part, begin, end in spans:
        rows = parts[part].rows
        for first in range(0, len(rows), together):
            those = rows[first : first + together]
            table = alone if len(those) == 1 else shared
            table.append((len(members), len(those), begin, end))
            members += those
    row = torch.tensor(members, dtype=torch.int64)
    places = torch.empty_like(row)
    places[row.argsort(stable=True)] = torch.arange(len(row))
    offsets = torch.zeros(count + 1, dtype=torch.int64)
    offsets[1:] = row.bincount(minlength=count).cumsum(0)

    def put(table: Tensor) -> Tensor:
        return upload(table.int(), device)

    return Pieces(
        segments=put(segments),
        alone=put(torch.tensor(alone).view(-1, 4)),
        shared=put(torch.tensor(shared).view(-1, 4)),
        members=put(torch.stack((row, places), 1)),
        offsets=put(offsets),
        most=max((entry[1] for entry in shared), default=1),
    )


def _at(parts: list[Part], rows: PagedRows, of: Callable[[Iterable[int]], int]) -> Tensor:
    """`of` (min or max) over the positions of each part's rows."""
    found = [of(rows.positions[row] for row in part.rows) for part in parts]
    return torch.tensor(found, dtype=torch.int64)
