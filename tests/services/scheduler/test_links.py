"""What is known of links, and what it makes of plans."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.common.config import Sharing
from sps2.common.messages import PrefillOptions
from sps2.services.scheduler.degrees import GAIN, SPARE, Degrees
from sps2.services.scheduler.hardware import USUAL, WORST, Known, Wire, hardware_of
from sps2.services.scheduler.links import PROMPT_S, Links, Path
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.speeds import Pace

from .test_core import CONFIG
from .test_degrees import LARGE

NOTHING = PrefillOptions()
FAST_S = 1e-4


def measured(**ends: float) -> Links:
    """Links whose pairs, as `ab`, have a rate both ways."""
    links = Links()
    for pair, gbit in ends.items():
        one, other = tuple(pair)
        links.probed(one, other, Path(gbit, FAST_S, 0.0))
        links.probed(other, one, Path(gbit, FAST_S, 0.0))
    return links


def test_a_link_is_as_good_as_the_best_path_of_its_shard() -> None:
    links = measured(ab=10.0, ac=0.01, bc=0.01)
    assert links.of("a") == links.of("b") == (10.0, FAST_S)
    assert links.of("c") == (0.01, FAST_S)
    assert links.of("d") is None
    wires = links.relative(tuple("abcd"))
    assert wires["a"] == wires["b"] == wires["d"] == Wire()
    assert wires["c"].rate == pytest.approx(0.001, rel=0.2)
    assert links.best("abcd")[0] == pytest.approx(10, rel=0.2)
    assert links.best("d") == (None, None)


def test_the_worse_direction_counts() -> None:
    links = measured(ab=1.0, ac=1.0)
    links.probed("a", "b", Path(0.01, FAST_S, 1.0))
    links.probed("c", "b", Path(1.0, FAST_S, 1.0))
    links.probed("a", "c", Path(0.01, FAST_S, 1.0))
    assert links.of("a") == (0.01, FAST_S)
    assert links.of("c") == (1.0, FAST_S)


def test_links_about_as_good_are_alike() -> None:
    assert measured(ab=10.0, ac=6.0, bc=6.0).relative(tuple("abc")) == {}
    assert Links().relative(tuple("abc")) == {}


def test_a_long_way_is_a_worse_link() -> None:
    links = measured(ab=1.0)
    for one, other in ("ac", "ca", "bc", "cb"):
        links.probed(one, other, Path(1.0, 0.05, 0.0))
    wires = links.relative(tuple("abc"))
    assert wires["a"] == Wire()
    assert wires["c"].rate == 1
    assert wires["c"].lag == pytest.approx(500, rel=0.5)
    links = measured(ab=1.0)
    links.probed("c", "a", Path(1.0, PROMPT_S, 0.0))  # a busy event loop takes as long
    assert links.relative(tuple("abc")) == {}


def test_probes_are_averaged_unless_the_link_has_changed() -> None:
    links = measured(ab=1.0)
    links.probed("a", "b", Path(1.5, FAST_S, 1.0))
    links.probed("b", "a", Path(1.5, FAST_S, 1.0))
    assert links.best("a")[0] == pytest.approx(1.5**0.5, rel=0.2)
    for one, other in ("ab", "ba"):
        links.probed(one, other, Path(0.1, FAST_S, 2.0))
    assert links.of("a") == (0.1, FAST_S)


def test_a_slower_path_makes_both_ends_doubtful_until_one_is_probed() -> None:
    links = measured(ab=1.0, ac=1.0, bc=1.0, cd=1.0)
    links.moved("a", "b", 0.8, 1.0)
    assert links.relative(tuple("abcd")) == {}
    assert not links.doubted
    links.moved("a", "b", 0.01, 2.0)
    wires = links.relative(tuple("abcd"))
    assert wires["a"] == wires["b"] != Wire()
    assert wires["c"] == wires["d"] == Wire()
    assert links.doubted == ["a", "b"]
    assert Links(links.state(), links.doubted).doubted == links.doubted
    for one, other in ("bc", "cb"):
        links.probed(one, other, Path(1.0, FAST_S, 3.0))
    for one, other in ("ac", "ca"):
        links.probed(one, other, Path(0.01, FAST_S, 3.0))
    wires = links.relative(tuple("abcd"))
    assert wires["b"] == Wire()
    assert wires["a"].rate < 0.02


def test_paths_that_just_were_as_fast_as_known_are_not_doubted() -> None:
    """The ranks of a group show at once which of them has the slow link."""
    links = measured(ab=1.0, ac=1.0, bc=1.0)
    assert links.confirmed("b", "c", 0.7, 2.0)
    assert not links.confirmed("a", "c", 0.01, 2.0)
    assert not links.confirmed("a", "d", 0.01, 2.0)
    for other in "bc":
        links.moved("a", other, 0.01, 2.0)
    wires = links.relative(tuple("abc"))
    assert wires["b"] == wires["c"] == Wire()
    assert wires["a"].rate < 0.02


def test_a_shard_that_is_gone_is_forgotten() -> None:
    links = measured(ab=0.01, bc=1.0)
    links.moved("c", "b", 0.1, 1.0)
    links.forget("b")
    assert links.state() == {"a": {}, "c": {}}
    assert links.doubted == ["c"]


def test_its_state_is_data() -> None:
    links = measured(ab=1.0, bc=0.1)
    assert Links(links.state()).relative(tuple("abc")) == links.relative(tuple("abc")) != {}


def test_what_is_configured_overrides_what_was_measured() -> None:
    known = Known(50.0, 2.0, 0.01)
    assert hardware_of(Sharing(), known) == tuple(known)
    assert hardware_of(Sharing()) == USUAL
    assert hardware_of(Sharing(gflops=7.0, link_latency_s=0.0), known) == (7.0, 2.0, 0.0)
    assert hardware_of(Sharing(link_gbit=3.0)) == (USUAL.gflops, 3.0, USUAL.link_latency_s)


def test_predictions_follow_what_was_measured() -> None:
    schemes = Schemes(CONFIG, 2, Sharing())
    before_s, moved_s = schemes.alone_s(1000), schemes.choose(8000, 2, NOTHING).predicted_s
    schemes.adapt(Known(USUAL.gflops / 4, None, None))
    assert schemes.alone_s(1000) == pytest.approx(4 * before_s)
    schemes.adapt(Known(None, 1e-4, None))
    assert schemes.alone_s(1000) == pytest.approx(before_s)
    assert schemes.choose(8000, 2, NOTHING).predicted_s > 2 * moved_s
    degrees = Degrees(Schemes(LARGE, 2, Sharing(gflops=5e5)))
    assert degrees.best(30_000, 8, 8, NOTHING).degree < 8
    degrees._schemes.adapt(Known(None, 3600.0, 1e-5))
    assert degrees.best(30_000, 8, 8, NOTHING).degree == 8


def test_a_slow_link_costs_what_its_bytes_take() -> None:
    schemes = Schemes(LARGE, 2, Sharing(gflops=5e5, link_gbit=100.0, link_latency_s=1e-5))
    scheme = PrefillOptions(method="gather")
    alike = schemes.choose(8000, 3, scheme)
    slow = schemes.choose(8000, 3, scheme, wires=(Wire(), Wire(0.001), Wire()))
    assert slow.predicted_s > 20 * alike.predicted_s
    far = schemes.choose(8000, 3, scheme, wires=(Wire(), Wire(1.0, 1000.0), Wire()))
    waits_s = 2 * LARGE.layers * 1e-5
    assert far.predicted_s == pytest.approx(alike.predicted_s + 999 * waits_s, rel=0.05)


def test_a_shard_with_a_slow_link_is_left_out() -> None:
    schemes = Schemes(LARGE, 2, Sharing(gflops=5e5, link_gbit=400.0, link_latency_s=1e-5))
    degrees = Degrees(schemes)

    def best(*wires: Wire) -> tuple[int, bool]:
        paces = tuple(Pace(1.0, 0.0, wire) for wire in wires)
        found = degrees.best(30_000, len(paces), len(paces), NOTHING, False, paces, paces)
        return found.degree, wires[-1].is_within(found.worst)

    assert best(Wire(), Wire(), Wire(0.7)) == (3, True)
    assert best(Wire(), Wire(), Wire(0.001)) == (2, False)
    assert best(Wire(), Wire(), Wire(1.0, 1e4)) == (2, False)
    paces = tuple(Pace(1.0, 0.0, wire) for wire in (Wire(0.001), Wire(), Wire()))
    assert degrees.behind(30_000, 2, NOTHING, paces).worst == Wire()
    assert degrees.behind(30_000, 3, NOTHING, paces).worst.rate == 0.001
    assert degrees.behind(30_000, 4, NOTHING, paces) == (4, WORST)


SPEEDS = st.sampled_from([1.0, 0.8, 0.5, 0.25, 0.1, 0.02])
WIRES = st.builds(
    Wire, st.sampled_from([1.0, 0.5, 0.1, 0.01, 0.001]), st.sampled_from([1.0, 1.0, 16.0, 512.0])
)


@given(
    st.integers(300, 100_000),
    st.lists(st.tuples(SPEEDS, WIRES), min_size=2, max_size=5),
    st.sampled_from([1.0, 10.0, 100.0, 3600.0]),
)
@settings(deadline=None, max_examples=80)
def test_no_subset_is_sooner_done(
    tokens: int, boxes: list[tuple[float, Wire]], link_gbit: float
) -> None:
    """Of idle shards, among all groups whose time goes into arithmetic to the required share."""
    schemes = Schemes(LARGE, 2, Sharing(gflops=1e5, link_gbit=link_gbit, link_latency_s=1e-5))
    paces = tuple(
        sorted((Pace(speed, 0.0, wire) for speed, wire in boxes), key=lambda pace: -pace.speed)
    )

    def takes_s(group: tuple[Pace, ...]) -> float:
        slow_first = group[::-1]
        speeds = tuple(pace.speed for pace in slow_first)
        wires = tuple(pace.wire for pace in slow_first)
        return schemes.choose(tokens, len(group), NOTHING, None, speeds, wires).predicted_s

    shards = len(paces)
    choice = Degrees(schemes).best(tokens, shards, shards, NOTHING, False, paces, paces)
    good = tuple(pace for pace in paces if pace.wire.is_within(choice.worst))
    taken_s, alone_s = takes_s(good[: choice.degree]), schemes.alone_s(tokens)
    for number in range(1, shards + 1):
        for group in combinations(paces, number):
            power = sum(pace.speed for pace in group)
            if number == 1 or alone_s >= 1.1 * SPARE * power * takes_s(group):
                assert taken_s <= 1.1 * GAIN * takes_s(group)
