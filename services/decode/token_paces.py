"""When an answer's tokens were generated, as trace spans of a few tokens each."""

import itertools
from collections.abc import Iterator, Sequence

from sps2.common.tracing import Note, id_of

PARTS = 32
"""Most spans of one answer."""


def token_paces(
    parent: str, start_s: float, times: Sequence[float], first: int = 1
) -> Iterator[Note]:
    """One note for each run of consecutive steps.

    Args:
        start_s: when the first step began.
        times: when each step ended.
        first: number of the first step's token.
    """
    size = -(-len(times) // PARTS) or 1
    for at in range(0, len(times), size):
        ends = [times[at - 1] if at else start_s, *times[at : at + size]]
        steps = [stop - start for start, stop in itertools.pairwise(ends)]
        name = f"tokens {first + at} to {first + at + len(steps) - 1}"
        note = Note(id_of(parent, name), parent, name, ends[0], ends[-1])
        note.detail = {
            "steps": len(steps),
            "mean_ms": round(1000 * sum(steps) / len(steps), 3),
            "slowest_ms": round(1000 * max(steps), 3),
        }
        yield note
