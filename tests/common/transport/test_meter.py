"""The rate of incoming frames."""

import torch

from sps2.common.transport.backends import BackendName
from sps2.common.transport.frame import frame_for
from sps2.common.transport.meter import LEAST_BYTES, Meter

from .conftest import MakePlanes

LARGE = 10 * LEAST_BYTES


class Clock:
    now_s = 5.0

    def __call__(self) -> float:
        return self.now_s


def meter() -> tuple[Meter, Clock]:
    clock = Clock()
    return Meter(clock), clock


def test_the_time_between_frames_does_not_count() -> None:
    found, clock = meter()
    for _ in range(3):
        found.begin("a", LARGE)
        clock.now_s += 0.5
        found.end("a")
        clock.now_s += 60.0
    assert found.totals() == {"a": (3 * LARGE, 1.5)}


def test_frames_at_once_share_the_time() -> None:
    """Of two that come at once each had half of the link; one that comes alone had all of it."""
    found, clock = meter()
    found.begin("a", LARGE)
    clock.now_s += 1.0
    found.begin("b", LARGE)
    clock.now_s += 2.0
    found.end("a")
    clock.now_s += 4.0
    found.end("b")
    assert found.totals() == {"a": (LARGE, 2.0), "b": (LARGE, 5.0)}


def test_small_frames_say_nothing() -> None:
    found, clock = meter()
    found.begin("a", LEAST_BYTES - 1)
    clock.now_s += 1.0
    found.end("a")
    found.end("b")
    assert found.totals() == {}


def test_what_came_since_is_the_difference() -> None:
    found, clock = meter()
    before = found.totals()
    for peer in ("a", "b"):
        found.begin(peer, LARGE)
        clock.now_s += 1.0
        found.end(peer)
    between = found.totals()
    found.begin("a", LARGE)
    clock.now_s += 3.0
    found.end("a")
    assert found.since(before) == {"a": (2 * LARGE, 4.0), "b": (LARGE, 1.0)}
    assert found.since(between) == {"a": (LARGE, 3.0)}


def test_a_frame_that_never_ends_does_not_count() -> None:
    found, clock = meter()
    before = found.totals()
    found.begin("a", LARGE)
    clock.now_s += 9.0
    found.drop("a")
    found.begin("b", LARGE)
    clock.now_s += 1.0
    found.end("b")
    assert found.since(before) == {"b": (LARGE, 1.0)}


async def test_a_plane_measures_large_frames(make_planes: MakePlanes, backend: BackendName) -> None:
    one, other = await make_planes()
    with other.open("r", 0) as inbox:
        sent = torch.zeros(LARGE, dtype=torch.uint8)
        for number in range(2):
            await one.send(other.name, frame_for("kv", ("r",), (0,), 0, number, (sent,)), [sent])
            await inbox.recv("kv", 0, number, one.name)
        await one.send(other.name, frame_for("kv", ("r",), (0,), 1, 0, (sent[:9],)), [sent[:9]])
        await inbox.recv("kv", 1, 0, one.name)
    found = other.meter.totals()
    if backend == "inproc":  # nothing comes, it is there
        assert found == {}
        return
    nbytes, seconds = found[one.name]
    assert 2 * LARGE < nbytes < 2.1 * LARGE
    assert seconds > 0
    assert one.meter.totals() == {}
    other.forget(one.name)
    assert other.meter.totals() == {}
