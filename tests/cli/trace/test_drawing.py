"""What a drawn trace says, at two widths."""

import pytest

from sps2.cli.trace.drawing import draw
from sps2.common.messages import Clock, Trace, TraceSpan

STRETCHES = (
    TraceSpan(
        "w",
        "",
        "request",
        0.0,
        10.0,
        service="gateway",
        detail={"prompt_tokens": 6000, "tokens": 40, "ttft_s": 5.0, "asked_as": "mine"},
    ),
    TraceSpan("q", "w", "queue", 0.0, 2.0, service="scheduler"),
    TraceSpan(
        "p",
        "w",
        "prefill",
        2.0,
        5.0,
        service="scheduler",
        detail={"attention": "fast", "method": "csa", "sp_degree": 2, "epoch": 1},
    ),
    TraceSpan("r", "p", "prefill", 2.0, 5.0, service="prefill-1", detail={"tokens": 3000}),
    TraceSpan(
        "l", "r", "layer 0", 2.0, 5.0, detail={"compute_s": 2.0, "exchange_s": 2.0, "hidden_s": 1.0}
    ),
    TraceSpan("c", "l", "compute", 2.0, 4.0),
    TraceSpan("s", "l", "send", 3.0, 5.0),
    TraceSpan("k", "w", "take KV", 3.0, 6.0, 0.25, service="decode-0"),
    TraceSpan("d", "w", "decode", 6.0, 10.0, service="decode-0"),
    TraceSpan(
        "1", "d", "tokens 1 to 9", 6.0, 7.0, detail={"steps": 9, "mean_ms": 100, "slowest_ms": 120}
    ),
    TraceSpan(
        "2",
        "d",
        "tokens 10 to 12",
        7.0,
        10.0,
        detail={"steps": 3, "mean_ms": 100, "slowest_ms": 900},
    ),
)


def drawn(width: int, trace: Trace) -> list[str]:
    lines = [line.plain for line in draw(trace, width)]
    assert all(len(line) <= width for line in lines)
    return lines


@pytest.mark.parametrize("width", [80, 120, 200])
def test_every_stage_lies_where_it_was(width: int) -> None:
    trace = Trace("cmpl-x", "1" * 32, 0.0, STRETCHES, (Clock("gateway", 0.0, 0.0),))
    lines = drawn(width, trace)
    text = "\n".join(lines)
    assert "cmpl-x" in lines[0]
    assert "asked as mine" in lines[0]
    assert "6,000 + 40 tokens, first after 5.00s, 90% accounted for" in lines[1]
    assert "layer" not in text
    rows = {line.split()[0] + " " + line.split()[1]: line for line in lines[5:11]}
    bars = lines[5].index("━")
    cells = lines[5].count("━")
    queue, rank, steps = rows["scheduler queue"], rows["prefill-1 prefill"], rows["decode-0 decode"]
    assert abs(queue.count("━") - 0.2 * cells) <= 1
    third = cells / 10
    assert abs(rank[bars:].count("━") - third) <= 1
    assert abs(rank[bars:].count("═") - third) <= 1
    assert abs(rank[bars:].count("┅") - third) <= 1
    assert abs(steps[bars:].count("▪") - 3 * third) <= 1
    assert abs(rows["decode-0 take"][bars:].count("╌") - 3 * third) <= 1
    if width >= 120:
        assert "fast by csa, SP 2, plan 2" in rows["scheduler prefill"]
        assert "3,000 tokens, 50% of 2.00s hidden" in rank
        assert "12 steps of 100.0ms, slowest 900ms" in steps or "12 steps of 100ms" in steps


def test_what_is_missing_or_inexact_is_said() -> None:
    clocks = (Clock("gateway", 0.0, 0.0), Clock("decode-0", 7.0, 0.0004))
    lines = drawn(80, Trace("cmpl-x", "1" * 32, 0.0, STRETCHES, clocks, ("prefill-0",)))
    text = "\n".join(lines)
    assert "no answer from prefill-0" in text
    assert "decode-0 has a clock of its own: its times may be off by 0.4ms" in text
    assert "gateway has a clock" not in text
