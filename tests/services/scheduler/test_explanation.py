"""An explanation has every decision about a request, and what others would have cost."""

import pytest

from sps2.common.config import Scheduler, Sharing
from sps2.common.errors import Invalid
from sps2.common.messages import CachedRun, PrefillOptions
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.event_log import EventLog
from sps2.services.scheduler.events import (
    Decoded,
    Ended,
    Event,
    Found,
    Granted,
    Joined,
    Lost,
    Prefilled,
    Returned,
    RoomSeen,
    Submitted,
)
from sps2.services.scheduler.explanation import Explanation, explain
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.plan import Work
from sps2.services.scheduler.policies import POLICIES
from sps2.services.scheduler.replay import Recording
from sps2.services.scheduler.schemes import Schemes

from .test_core import CONFIG, room, shard

SCHEMES = Schemes(CONFIG, 2, Sharing(gflops=0.02))


def explained(events: list[tuple[float, Event]], wanted: str = "r") -> tuple[Explanation, ...]:
    settings = Scheduler(prefill_span_tokens=64)
    core = Core(POLICIES["sps2"](settings, SCHEMES), Fleet(2, 2), 8)
    log = EventLog(core, settings, SCHEMES)
    for index in range(2):
        log.handle(Joined(shard("prefill", index)), 0)
        log.handle(Joined(shard("decode", index, 64)), 0)
    log.handle(RoomSeen(room(2, 64)), 0)
    for at_s, event in events:
        log.handle(event, at_s)
    return explain(Recording(log.lines(), "log"), wanted)


def lines(explanation: Explanation) -> list[str]:
    return [f"{step.at_s:g}: {step.what}" for step in explanation.steps]


def test_the_life_of_a_request() -> None:
    (found,) = explained(
        [
            (1.0, Submitted(Work("other", 900, 16))),
            (1.0, Granted("other", room(2, 64))),
            (2.0, Submitted(Work("r", 1000, 16, hashes=(b"a", b"b"), priority=1))),
            (2.1, Found("r", (CachedRun("decode-0", 2, 2),))),
            (3.0, Ended("other")),
            (3.0, Found("r", (CachedRun("decode-0", 2, 2),))),
            (3.0, Granted("r", room(2, 64))),
            (4.0, Returned("r", 0.5)),
        ]
    )
    assert lines(found)[:4] == [
        "0: arrived: 1000 tokens of prompt, up to 16 of answer, priority 1; 0 waited, 1 ran",
        "0.1: the directory knows 2 cached pages of its prompt",
        "0.1: waits for shards that are free to prefill it",
        "1: the directory knows 2 cached pages of its prompt",
    ]
    assert "started on prefill-0, prefill-1, urgency" in found.steps[4].what
    assert found.steps[4].options[0].cached_tokens in (0, 32)
    assert lines(found)[-1] == "2: back to the queue: there was no room after all"


def test_what_was_lost_is_named() -> None:
    (found,) = explained(
        [
            (0.0, Submitted(Work("r", 1000, 16))),
            (1.0, Lost("prefill-1", shard("prefill", 1).peer.name)),
            (1.0, Returned("r")),
            (2.0, Returned("r")),
        ]
    )
    back = [step.what for step in found.steps if step.what.startswith("back")]
    assert back == [
        "back to the queue: it lost prefill-1",
        "back to the queue: it lost a link between shards, or its KV",
    ]
    assert "started on prefill-0, urgency" in found.steps[-1].what


def test_the_options_of_a_start() -> None:
    (found,) = explained([(0.0, Submitted(Work("r", 1000, 16)))])
    arrived, started = found.steps
    assert not arrived.options
    chosen, *others = started.options
    assert chosen.chosen
    assert chosen.sp_degree == 2
    assert {option.sp_degree for option in others} == {1, 2}
    assert {option.method for option in others} >= {"ring", "ulysses", "pass_q"}
    assert {option.attention for option in others} >= {"exact", "balanced", "fast"}
    seconds = [option.seconds for option in others]
    assert seconds == sorted(seconds)
    alone = next(option for option in others if option.sp_degree == 1)
    assert alone.nbytes == 0
    assert alone.seconds == pytest.approx(SCHEMES.alone_s(1000))
    assert chosen.seconds < 0.6 * alone.seconds


def test_lossless_packing_is_named() -> None:
    work = Work("r", 1000, 16, options=PrefillOptions(lossless=True))
    plain, packed = (explained([(0.0, Submitted(each))])[0] for each in (Work("r", 1000, 16), work))
    assert "packed losslessly" not in plain.steps[-1].what
    assert "; what travels is packed losslessly" in packed.steps[-1].what
    (nbytes,) = {step.nbytes for step in packed.steps[-1].options if step.chosen}
    assert nbytes < plain.steps[-1].options[0].nbytes


def test_who_is_computed_beside_it_is_named() -> None:
    (found,) = explained(
        [
            (0.0, Submitted(Work("long", 900, 16))),
            (0.0, Granted("long", room(2, 64))),
            (0.5, Submitted(Work("r", 40, 16))),
        ]
    )
    assert "; they also prefill long (" in found.steps[-1].what


def test_expected_and_real_times() -> None:
    (found,) = explained(
        [
            (0.0, Submitted(Work("r", 1000, 16))),
            (0.0, Granted("r", room(2, 64))),
            (7.0, Prefilled("r")),
            (8.0, Decoded("r", 11)),
            (8.0, Ended("r")),
        ]
    )
    expected = next(step for step in found.steps if step.options).options[0].seconds
    assert lines(found)[2:] == [
        f"7: first token after 7.000 s of prefill, {expected:.3f} s expected",
        "8: answered with 11 tokens",
        "8: ended",
    ]


def test_a_refusal_has_its_reason() -> None:
    (found,) = explained([(0.0, Submitted(Work("r", 100_000, 16)))])
    assert found.steps[-1].what.startswith("refused: 100000 tokens of prompt")


def test_every_choice_of_an_answer() -> None:
    found = explained(
        [(0.0, Submitted(Work(request, 40, 16))) for request in ("abc0", "abd0", "abc1")], "abc"
    )
    assert [each.request for each in found] == ["abc0", "abc1"]


def test_an_unknown_request() -> None:
    with pytest.raises(Invalid, match="remembers no request 'r'"):
        explained([(0.0, Submitted(Work("other", 40, 16)))])
