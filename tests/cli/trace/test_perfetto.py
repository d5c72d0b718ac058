"""Every span is an event of its service, on a track where nothing overlaps by half."""

from itertools import combinations

from sps2.cli.trace.perfetto import events, lanes
from sps2.common.messages import Trace, TraceSpan


def span(name: str, start_s: float, stop_s: float, service: str = "prefill-0") -> TraceSpan:
    return TraceSpan(name + str(start_s), "", name, start_s, stop_s, service=service)


STRETCHES = (
    span("request", 0.0, 10.0, "gateway"),
    span("prefill", 1.0, 5.0),
    span("layer 0", 1.0, 3.0),
    span("layer 1", 2.5, 5.0),
    span("compute", 1.0, 2.0),
    span("send", 1.5, 2.5),
    span("send", 2.0, 3.0),
)


def test_lanes_hold_what_nests_or_follows() -> None:
    found = lanes(STRETCHES[1:4])
    assert [[each.name for each in lane] for lane in found] == [["prefill", "layer 0"], ["layer 1"]]
    for lane in lanes(STRETCHES):
        for one, two in combinations(lane, 2):
            apart = one.stop_s <= two.start_s or two.stop_s <= one.start_s
            inside = one.start_s <= two.start_s and two.stop_s <= one.stop_s
            assert apart or inside, (one, two)


def test_events_have_processes_tracks_and_microseconds() -> None:
    told = events(Trace("cmpl-x", "1" * 32, 0.0, STRETCHES, ()))
    listed = told["traceEvents"]
    processes = {
        each["args"]["name"]: each["pid"] for each in listed if each["name"] == "process_name"
    }
    tracks = {
        (each["pid"], each["tid"]): each["args"]["name"]
        for each in listed
        if each["name"] == "thread_name"
    }
    assert {*processes} == {"gateway", "prefill-0"}
    assert {*tracks.values()} == {"stages", "stages 2", "computes", "sends", "sends 2"}
    drawn = [each for each in listed if each["ph"] == "X"]
    assert len(drawn) == len(STRETCHES)
    (compute,) = (each for each in drawn if each["name"] == "compute")
    assert (compute["ts"], compute["dur"]) == (1e6, 1e6)
    assert tracks[compute["pid"], compute["tid"]] == "computes"
    assert compute["pid"] == processes["prefill-0"]
