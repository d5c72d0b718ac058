"""Shards that measure themselves and their links, and what the scheduler makes of that."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from sps2.common.config import Scheduler, Sharing
from sps2.common.messages import Measures, PrefillOptions, Room
from sps2.services.scheduler.actions import Action, Launch, Probe
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.event_log import EventLog
from sps2.services.scheduler.events import (
    Computed,
    Ended,
    Event,
    Granted,
    Joined,
    Lost,
    Measured,
    Moved,
    Prefilled,
    RoomSeen,
    Submitted,
    Tick,
)
from sps2.services.scheduler.explanation import explain
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.fleet_status import statuses
from sps2.services.scheduler.measuring import NOTHING, Measuring, measuring_for
from sps2.services.scheduler.plan import Plan, Work
from sps2.services.scheduler.policies import POLICIES
from sps2.services.scheduler.probing import AGAIN_S, SLOW_AGAIN_S
from sps2.services.scheduler.replay import Recording
from sps2.services.scheduler.schemes import Schemes

from .test_core import CONFIG, room, shard

PAGES = 256
ALL = Measuring(speeds=True, links=True)
LATENCY_S = 1e-4


@dataclass
class Boxes:
    """Mixed shards, or prefill shards and one decode shard, in virtual time.

    gflops: what each really computes. gbit: what its link really carries. claims: what it says of
    itself, if not the truth.
    """

    gflops: list[float]
    gbit: list[float]
    claims: dict[int, float] = field(default_factory=dict)
    mixed: bool = True
    measures: Measuring = ALL
    answers: bool = True
    """Whether shards answer when they are to measure."""

    def __post_init__(self) -> None:
        self.now_s = 0.0
        self.probes: list[Probe] = []
        settings = Scheduler(prefill_span_tokens=64, decode_span_tokens=64)
        schemes = Schemes(CONFIG, 2, Sharing())
        kinds = {"mixed": len(self.gflops)} if self.mixed else {"prefill": len(self.gflops)}
        fleet = Fleet(**kinds, decode=int(not self.mixed), measures=self.measures)
        self.core = Core(POLICIES["sps2"](settings, schemes), fleet, 8)
        self.log = EventLog(self.core, settings, schemes)
        self.name = "mixed" if self.mixed else "prefill"
        for index in range(len(self.gflops)):
            self.join(index)
        if not self.mixed:
            self.do(Joined(shard("decode", 0, PAGES)))
        pages = {f"mixed-{index}": PAGES for index in range(len(self.gflops))}
        self.do(RoomSeen(Room(pages, dict(pages)) if self.mixed else room(1, PAGES)))

    def join(self, index: int, life: int = 0) -> None:
        made = shard(self.name, index, PAGES * self.mixed, life=life)
        self.do(Joined(replace(made, gflops=self.claim(index))))

    def claim(self, index: int) -> float:
        return self.claims.get(index, self.gflops[index])

    def do(self, event: Event) -> list[Action]:
        """Handle an event; shards that are to measure do so at once."""
        actions = self.log.handle(event, self.now_s)
        rest: list[Action] = [each for each in actions if not isinstance(each, Probe)]
        for probe in actions:
            if isinstance(probe, Probe):
                self.probes.append(probe)
                if self.answers:
                    rest += self.do(Measured(probe.shard, probe.partner, self.measure(probe)))
        return rest

    def measure(self, probe: Probe) -> Measures:
        gbit = min(self.link(probe.shard), self.link(probe.partner))
        index = int(probe.shard[-1])
        claim = self.claim(index) if probe.computes else 0.0
        return Measures(claim, gbit, gbit, LATENCY_S)

    def link(self, shard: str) -> float:
        return 10.0 if shard.startswith("decode") else self.gbit[int(shard[-1])]

    def wait(self, seconds: float) -> None:
        """Let time pass, with the ticks that are due."""
        until_s = self.now_s + seconds
        while (at_s := self.core.wakes_at()) is not None and at_s <= until_s:
            self.now_s = max(self.now_s, at_s)
            self.do(Tick())
        self.now_s = until_s

    def run(self, request: str, tokens: int = 2000, sp: int | None = None) -> Plan:
        """Compute a prompt; returns its plan."""
        options = PrefillOptions(sp_degree=sp)
        (launch,) = self.do(Submitted(Work(request, tokens, 16, options)))
        assert isinstance(launch, Launch)
        plan = launch.plan
        self.do(Granted(request, self.core.fleet.room))
        seconds = tuple(
            gflop / self.gflops[int(name[-1])] + 0.02
            for name, gflop in zip(plan.group, plan.partition.own_gflop, strict=True)
        )
        moved = tuple(self.moved(plan))
        self.now_s += max(seconds) + max((each.seconds for each in moved), default=0.0)
        for event in (Computed(request, seconds, moved), Prefilled(request), Ended(request)):
            self.do(event)
        return plan

    def moved(self, plan: Plan) -> list[Moved]:
        """What goes from each rank of a gather to the later ones, as these receive it."""
        total = sum(plan.partition.predicted_bytes.values())
        pairs = [(a, b) for n, b in enumerate(plan.group) for a in plan.group[:n]]
        sent = [source for source, _ in pairs]
        return [
            Moved(source, target, total // len(pairs), seconds)
            for source, target in pairs
            for gbit in (min(self.link(source) / sent.count(source), self.link(target)),)
            for seconds in (total / len(pairs) * 8e-9 / gbit,)
        ]

    def replays(self) -> None:
        """The record of all this decides alike."""
        recording = Recording(self.log.lines(), "log")
        assert sum(1 for _ in recording.replay(recording.core())) == len(recording.entries)


def work_of(plan: Plan) -> dict[str, float]:
    return dict(zip(plan.group, plan.partition.own_gflop, strict=True))


@pytest.mark.parametrize("mixed", [False, True])
def test_the_first_prompt_follows_what_shards_measured(mixed: bool) -> None:
    boxes = Boxes([2.0, 2.0, 0.5], [10.0] * 3, mixed=mixed)
    work = work_of(boxes.run("a", sp=3))
    assert work[f"{boxes.name}-2"] < 0.5 * min(work[f"{boxes.name}-{n}"] for n in (0, 1))
    assert boxes.core.policy.placing._schemes.hardware.gflops == pytest.approx(2, rel=0.2)
    boxes.replays()


def test_what_is_configured_is_not_measured() -> None:
    assert measuring_for(Sharing()) == ALL
    assert measuring_for(Sharing(gflops=1.0)) == (False, True)
    assert measuring_for(Sharing(link_gbit=1.0)) == ALL  # the latency is not configured
    assert measuring_for(Sharing(gflops=1.0, link_gbit=1.0, link_latency_s=0.0)) == NOTHING
    boxes = Boxes([2.0, 0.5], [10.0, 0.01], measures=NOTHING)
    assert boxes.core.fleet.relative_speeds() == {} == boxes.core.fleet.relative_wires()
    boxes.wait(100)
    assert not boxes.probes


@pytest.mark.parametrize("claim", [20.0, 0.4])
def test_a_shard_that_lies_is_corrected_within_a_few_prompts(claim: float) -> None:
    """Where it is used: a shard that says that it is slow gets little, but it gets some."""
    boxes = Boxes([2.0, 2.0, 2.0], [10.0] * 3, {1: claim})
    first = work_of(boxes.run("first", sp=3))
    others = first["mixed-0"], first["mixed-2"]
    assert first["mixed-1"] > 3 * max(others) or first["mixed-1"] < 0.5 * min(others)
    for number in range(4):
        boxes.run(f"r{number}", sp=3)
    last = work_of(boxes.run("last", sp=3))
    assert max(last.values()) < 1.7 * min(last.values())
    boxes.wait(10 * AGAIN_S)  # it says the same again, and is not believed
    again = work_of(boxes.run("again", sp=3))
    assert max(again.values()) < 1.7 * min(again.values())
    boxes.replays()


def test_a_shard_that_becomes_faster_is_used_without_a_prompt_to_try_it() -> None:
    boxes = Boxes([2.0, 2.0, 0.05], [10.0] * 3)
    for number in range(3):
        assert "mixed-2" not in boxes.run(f"r{number}").group
    (status,) = (each for each in statuses(boxes.core.fleet) if each.id == "mixed-2")
    assert status.left_out.startswith("it computes at 0.0")
    boxes.gflops[2] = 2.0
    boxes.wait(SLOW_AGAIN_S + 1)
    assert all(not each.left_out for each in statuses(boxes.core.fleet))
    assert "mixed-2" in boxes.run("last").group
    boxes.replays()


def test_what_shards_measure_is_where_learning_begins_not_where_it_ends() -> None:
    """One that measures right is believed, also after a long time without any prompt."""
    boxes = Boxes([2.0, 0.2], [10.0] * 2)
    for number in range(3):
        boxes.run(f"r{number}", sp=2)
    boxes.wait(20 * AGAIN_S)
    assert boxes.core.fleet.relative_speeds()["mixed-1"] == pytest.approx(0.1, rel=0.5)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_link_that_becomes_slow_is_left_out_within_two_prompts_and_returns(mixed: bool) -> None:
    boxes = Boxes([2.0] * 3, [10.0] * 3, mixed=mixed)
    slow = f"{boxes.name}-1"
    assert len(boxes.run("before").group) == 3
    boxes.gbit[1] = 1e-4
    assert slow in boxes.run("first").group
    for request in ("second", "third"):
        plan = boxes.run(request)
        assert slow not in plan.group
        assert len(plan.group) == 2
    (status,) = (each for each in statuses(boxes.core.fleet) if each.id == slow)
    assert status.link is not None
    assert 1e-6 < status.link < 1e-4
    assert status.left_out.startswith("its link has 0.")
    (told,) = explain(Recording(boxes.log.lines(), "log"), "third")
    assert any(f"left out: {slow} (its link has 0." in step.what for step in told.steps)
    boxes.wait(3 * SLOW_AGAIN_S)
    assert slow not in boxes.run("fourth").group
    boxes.gbit[1] = 10.0
    boxes.wait(SLOW_AGAIN_S + 1)
    assert all(not each.left_out for each in statuses(boxes.core.fleet))
    assert slow in boxes.run("last").group
    boxes.replays()


def test_of_two_shards_one_goes_on_alone_over_a_slow_link() -> None:
    boxes = Boxes([2.0] * 2, [10.0] * 2)
    assert len(boxes.run("before").group) == 2
    boxes.gbit[1] = 1e-4
    boxes.run("first")
    assert len(boxes.run("second").group) == 1
    boxes.gbit[1] = 10.0
    boxes.wait(AGAIN_S + 1)
    assert len(boxes.run("last").group) == 2
    boxes.replays()


def test_a_slow_link_is_known_before_the_first_prompt() -> None:
    boxes = Boxes([2.0] * 3, [10.0, 10.0, 1e-4])
    assert "mixed-2" not in boxes.run("first").group
    assert "mixed-2" not in boxes.run("two", sp=2).group
    assert "mixed-2" in boxes.run("three", sp=3).group


def test_links_that_no_prompt_waits_for_are_not_doubted() -> None:
    boxes = Boxes([2.0] * 2, [10.0] * 2)
    boxes.run("before")
    probes = len(boxes.probes)
    boxes.do(Computed("gone", (9.0, 9.0), (Moved("mixed-0", "mixed-1", 1 << 20, 2.0),)))
    boxes.do(Computed("gone", (0.0, 0.0), (Moved("mixed-0", "mixed-1", 1 << 20, 0.01),)))
    assert boxes.core.fleet.relative_wires() == {}
    assert boxes.core.fleet.known().link_gbit == pytest.approx(10, rel=0.2)
    assert len(boxes.probes) == probes


def test_one_shard_at_a_time_measures_while_it_does_nothing() -> None:
    boxes = Boxes([2.0] * 4, [10.0] * 4, answers=False)
    assert [probe.shard for probe in boxes.probes] == ["mixed-0"]
    assert boxes.core.wakes_at() is None
    boxes.do(Measured("mixed-0", "mixed-1", None))
    assert [probe.shard for probe in boxes.probes] == ["mixed-0", "mixed-1"]
    boxes.answers = True
    boxes.do(Measured("mixed-1", "mixed-0", None))
    assert {probe.shard for probe in boxes.probes} == {f"mixed-{n}" for n in range(4)}
    found = len(boxes.probes)
    boxes.do(Submitted(Work("a", 2000, 16)))
    boxes.wait(2 * AGAIN_S)  # all compute
    assert len(boxes.probes) == found
    assert boxes.core.wakes_at() is None
    boxes.do(Ended("a"))
    assert len(boxes.probes) == found + 4


def test_a_shard_measures_its_rate_only_where_its_whole_host_is_idle() -> None:
    boxes = Boxes([2.0] * 3, [10.0] * 3)
    fleet = boxes.core.fleet
    assert len({member.shard.host for member in fleet.members.values()}) == 1
    assert all(probe.computes for probe in boxes.probes)
    boxes.do(Submitted(Work("a", 60, 16)))
    boxes.wait(2 * AGAIN_S)
    late = boxes.probes[3:]
    assert late
    assert not any(probe.computes for probe in late)
    assert all(not fleet.members[each.shard].prefilled for each in late)


def test_a_shard_that_leaves_while_it_measures_is_forgotten() -> None:
    boxes = Boxes([2.0] * 3, [10.0] * 3, answers=False)
    (probe,) = boxes.probes
    boxes.do(Lost(probe.shard, f"{probe.shard}/0"))
    boxes.answers = True
    boxes.do(Measured(probe.shard, probe.partner, boxes.measure(probe)))
    assert boxes.core.fleet.links.of(probe.shard) is None
    assert {each.shard for each in boxes.probes} == {"mixed-0", "mixed-1", "mixed-2"}
    boxes.join(int(probe.shard[-1]), life=1)
    assert boxes.core.fleet.links.of(probe.shard) is not None
    boxes.replays()


def test_kv_goes_to_decode_shards_with_good_links() -> None:
    boxes = Boxes([2.0] * 2, [10.0] * 2, mixed=False)
    boxes.do(Joined(shard("decode", 1, PAGES)))
    boxes.do(RoomSeen(room(2, PAGES)))
    for other in ("prefill-0", "prefill-1", "decode-0"):
        boxes.do(Measured("decode-1", other, Measures(0.0, 1e-4, 1e-4, LATENCY_S)))
    kept: Sequence[str] = [place.shard for place in boxes.run("a", 60).placements]
    assert kept == ["decode-0"]


def test_what_a_shard_moved_that_is_gone_since_says_nothing() -> None:
    boxes = Boxes([2.0] * 3, [10.0] * 3)
    boxes.do(Lost("mixed-1", "mixed-1/0"))
    boxes.do(Computed("gone", (1.0, 1.0), (Moved("mixed-1", "mixed-0", 1 << 20, 9.0),)))
    assert boxes.core.fleet.links.of("mixed-1") is None
    assert boxes.core.fleet.relative_wires() == {}
    boxes.wait(AGAIN_S + 1)
    boxes.replays()
