"""Trace spans nest, the last requests are kept, and what is not accounted for shows."""

import pytest

from sps2.common.messages import Recall, Trace, TraceSpan
from sps2.common.tracing import Context, Note, Recorder, accounted, context_of, new_context

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_traceparent_is_read_and_written() -> None:
    context = context_of(GIVEN)
    assert context == Context("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", True)
    assert str(context) == GIVEN
    assert context_of(GIVEN[:-1] + "0") == context._replace(is_sampled=False)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "junk",
        GIVEN.upper(),
        GIVEN + "-more",
        "ff" + GIVEN[2:],
        GIVEN.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        GIVEN.replace("00f067aa0ba902b7", "0" * 16),
    ],
)
def test_what_is_no_traceparent_is_none(wrong: str) -> None:
    assert context_of(wrong) is None


async def test_spans_are_parts_of_each_other_and_of_the_callers() -> None:
    recorder = Recorder("scheduler", 8)
    trail = recorder.trail("answer0000", GIVEN)
    with trail.during("prefill", sp_degree=2) as part:
        inner = part.begin("rank")
        inner.later(lambda parent: [Note("n", parent, "layer 0", 1.0, 2.0)])
    told = (await recorder.recall(Recall("answer"))).spans
    prefill, rank, layer = told
    assert prefill.parent == "00f067aa0ba902b7"
    assert (rank.parent, layer.parent) == (prefill.id, rank.id)
    assert part.traceparent == f"00-{trail.context.trace_id}-{prefill.id}-01"
    assert not prefill.is_open
    assert rank.is_open
    assert prefill.stop_s >= prefill.start_s
    assert {each.service for each in told} == {"scheduler"}
    assert prefill.detail == {"sp_degree": 2}
    inner.end(tokens=5)
    inner.end(tokens=6)
    rank = (await recorder.recall(Recall("answer"))).spans[1]
    assert (rank.is_open, rank.detail) == (False, {"tokens": 5})


async def test_the_last_requests_are_kept_or_none() -> None:
    recorder = Recorder("decode-0", 2)
    for request in ("a", "b", "a", "c"):
        recorder.trail(request, str(new_context()._replace(span="1" * 16))).begin("x")
    assert [name for name, _ in recorder.notes()] == ["c", "a"]
    assert len((await recorder.recall(Recall("a"))).spans) == 2
    assert not (await recorder.recall(Recall("b"))).spans
    nothing = Recorder("decode-0", 0)
    nothing.trail("a", GIVEN).begin("x")
    assert not nothing.notes()


def trace(*spans: TraceSpan) -> Trace:
    return Trace("cmpl-x", "1" * 32, 0.0, spans, ())


def test_only_work_without_parts_accounts_for_time() -> None:
    whole = TraceSpan("w", "", "request", 0.0, 10.0)
    assert accounted(trace(whole)) == 0.0
    parts = (
        TraceSpan("a", "w", "queue", 0.0, 2.0),
        TraceSpan("b", "w", "prefill", 2.0, 9.0),
        TraceSpan("c", "b", "compute", 3.0, 5.0),
        TraceSpan("d", "b", "await", 4.0, 6.0),
        TraceSpan("e", "w", "detokenise", 6.0, 9.0, busy_s=0.1),
        TraceSpan("f", "w", "totals", 9.5, 12.0),
    )
    assert accounted(trace(whole, *parts)) == pytest.approx(0.2 + 0.3 + 0.05)


async def test_refused_requests_make_room_for_each_other() -> None:
    recorder = Recorder("gateway", 8)
    for number in range(6):
        recorder.trail(f"good {number}", "")
    for number in range(20):
        recorder.trail(f"bad {number}", "")
        recorder.refuse(f"bad {number}")
    names = [name for name, _ in recorder.notes()]
    assert names[:2] == ["bad 19", "bad 18"]
    assert names[2:] == [f"good {number}" for number in (5, 4, 3, 2, 1)]
    for number in range(6, 14):
        recorder.trail(f"good {number}", "")
    assert [name for name, _ in recorder.notes()] == [f"good {n}" for n in range(13, 5, -1)]
    recorder.refuse("gone")
    Recorder("gateway", 0).refuse("any")
