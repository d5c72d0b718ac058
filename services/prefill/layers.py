"""A rank's timeline as trace spans: its layers, and when it computed and exchanged in each."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from sps2.common.tracing import Note, id_of, union
from sps2.services.prefill.timeline import Entry, Phase

PHASES: dict[Phase, str] = {"compute": "compute", "in": "await", "out": "send"}


def layers(parent: str, entries: Sequence[Entry]) -> Iterator[Note]:
    """A note for each layer, and below it one for each period of computing, awaiting or sending.

    A layer comprises its attention, the transfers for it, and the arithmetic up to the next layer's
    attention. What precedes the first is the embedding and the projections.
    """
    begins: dict[int, float] = {}
    for each in entries:
        if each.layer >= 0:
            begins[each.layer] = min(each.start_s, begins.get(each.layer, each.start_s))
    edges = sorted(begins.values())
    parts: dict[int, list[Entry]] = {}
    for each in entries:
        place = bisect_right(edges, each.start_s) - 1 if each.layer < 0 else each.layer
        parts.setdefault(place, []).append(each)

    for place in sorted(parts):
        name = f"layer {place}" if place >= 0 else "embed"
        note = Note(id_of(parent, name), parent, name, *_ends(parts[place]))
        moving = _seconds(parts[place], "in", "out")
        computing = _seconds(parts[place], "compute")
        together = _seconds(parts[place], "compute", "in", "out")
        note.detail = {
            "compute_s": round(computing, 6),
            "exchange_s": round(moving, 6),
            "hidden_s": round(computing + moving - together, 6),
        }
        yield note
        for phase, title in PHASES.items():
            for start_s, stop_s in _union(parts[place], phase):
                made = id_of(note.id, (title, start_s))
                yield Note(made, note.id, title, start_s, stop_s)


def _ends(entries: Sequence[Entry]) -> tuple[float, float]:
    return min(each.start_s for each in entries), max(each.stop_s for each in entries)


def _union(entries: Sequence[Entry], *phases: Phase) -> list[tuple[float, float]]:
    return union([(each.start_s, each.stop_s) for each in entries if each.phase in phases])


def _seconds(entries: Sequence[Entry], *phases: Phase) -> float:
    return sum(stop - start for start, stop in _union(entries, *phases))
