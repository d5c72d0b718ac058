"""An answer's steps become a few spans, one after the other, with the slowest of each."""

from itertools import pairwise

import pytest

from sps2.services.decode.token_paces import PARTS, token_paces


@pytest.mark.parametrize("steps", [1, 2, PARTS, PARTS + 1, 1000])
def test_every_step_is_in_one_of_few(steps: int) -> None:
    times = [10.0 + 0.5 * step for step in range(1, steps + 1)]
    notes = list(token_paces("p", 10.0, times))
    assert len(notes) <= PARTS
    assert notes[0].start_s == 10.0
    assert notes[-1].stop_s == times[-1]
    assert all(a.stop_s == b.start_s for a, b in pairwise(notes))
    assert sum(int(note.detail["steps"]) for note in notes) == steps
    assert {note.detail["mean_ms"] for note in notes} == {500.0}
    assert notes[-1].name.endswith(f"to {steps}")


def test_the_slowest_step_shows() -> None:
    (first, *_) = token_paces("p", 0.0, [0.1 * step for step in range(1, 33)] + [10.0] * 32)
    assert (first.detail["steps"], first.detail["slowest_ms"]) == (2, 100.0)
    *_, slow, _ = token_paces("p", 0.0, [0.1, 0.2, 5.2, 5.3])
    assert slow.detail["slowest_ms"] == 5000.0
    assert not list(token_paces("p", 0.0, []))
