"""What clients saw of faults, as a table in Markdown."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from .faults import Fault
from .load import Seen

Run = tuple[float, Sequence[Fault], Sequence[Seen]]
"""When a run began, its faults, and its streams."""


def table(runs: Sequence[Run]) -> Iterator[str]:
    """A line for each kind of fault and stage of a stream, of the runs with one fault alone.

    The pause is the longest without a token of each stream, in seconds: median, and most.
    """
    groups: dict[tuple[str, str], list[Seen]] = defaultdict(list)
    for since_s, faults, streams in runs:
        if len(faults) == 1:
            (fault,) = faults
            for seen in streams:
                stage = seen.stage(since_s + fault.after_s)
                if stage != "not there" and seen.end != "left":
                    groups[_name(fault), stage].append(seen)
    yield "| fault | the stream was | streams | whole answers | errors | pause, median | most |"
    yield "|---|---|---|---|---|---|---|"
    for (name, stage), streams in sorted(groups.items()):
        ends = Counter(each.end for each in streams)
        whole = ends.pop("answer", 0)
        errors = ", ".join(f"{count} {end}" for end, count in sorted(ends.items())) or "none"
        pauses = [_pause_s(each) for each in streams if each.end == "answer"] or [0.0]
        yield (
            f"| {name} | {stage} | {len(streams)} | {whole} | {errors} | "
            f"{statistics.median(pauses):.1f} | {max(pauses):.1f} |"
        )


def _name(fault: Fault) -> str:
    target = fault.target.partition("-")[0]
    lasts = f", {fault.lasts_s:g} s" if fault.lasts_s and fault.kind != "kill" else ""
    return f"{fault.kind} {target}{lasts}"


def _pause_s(seen: Seen) -> float:
    return max(b - a for a, b in zip(seen.times_s, seen.times_s[1:], strict=False))
