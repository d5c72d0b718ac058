"""The simulator: what it computes follows from its profile, and nothing is lost."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace as with_fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sps2.cli.simulator.alone import Alone
from sps2.cli.simulator.losses import parse_losses
from sps2.cli.simulator.outcomes import Outcome, Run
from sps2.cli.simulator.profile import Profile
from sps2.cli.simulator.replaying import DirectoryReplay
from sps2.cli.simulator.setup import Setup
from sps2.cli.simulator.simulation import Loss, Simulation
from sps2.cli.workload import sources
from sps2.cli.workload.requests import Turn, Workload
from sps2.common.config import Cluster, Kv, Scheduler, Sharing
from sps2.services.scheduler.event_log import EventLog
from sps2.services.scheduler.policies import POLICIES
from sps2.services.scheduler.replay import Recording

from ..services.world import tiny_config

PAGE = 16
MODEL = tiny_config()
PROFILE = Profile(
    name="made up",
    model="tiny",
    machine="card",
    is_measured=False,
    sources={},
    margin=0.1,
    launch_s=0.01,
    pass_s=((1, 0.001), (1000, 1.0)),
    pair_s=1e-7,
    share_s=0.002,
    step_s=((1, 0.01), (11, 0.02)),
    key_s=1e-6,
    remote_s=0.001,
    link_gbit=100.0,
    link_latency_s=0.0,
)


def setup(
    prefill: int = 2,
    decode: int = 2,
    mixed: int = 0,
    pages: int = 10_000,
    profile: Profile = PROFILE,
    growth_tokens: int = 256,
    cache: bool = True,
    **scheduler: Any,
) -> Setup:
    config = replace(
        Cluster(),
        prefill=prefill,
        decode=decode,
        mixed=mixed,
        scheduler=Scheduler(**{"max_queue": 10_000, "decode_span_tokens": 100_000, **scheduler}),
        kv=Kv(page_tokens=PAGE, growth_tokens=growth_tokens, prefix_cache=cache),
        sharing=Sharing(gflops=0.02),
    )
    return Setup(config, MODEL, 2, profile, pages)


def run(made: Setup, turns: Sequence[Turn], block_tokens: int = 32, **options: Any) -> Run:
    return Simulation(made, **options).run(Workload("test", turns, block_tokens))


def alone(made: Setup, prompt: int, answer: int = 1) -> Outcome:
    return run(made, [Turn(0.0, prompt, answer)]).outcomes[0]


def test_what_a_cluster_would_measure_is_as_the_profile_says() -> None:
    made = setup(1, 1)
    assert made.schemes().hardware[:2] == (0.02, PROFILE.link_gbit)
    measured = with_fields(made, config=replace(made.config, sharing=Sharing()))
    took_s = measured.schemes().alone_s(8000)
    assert took_s == pytest.approx(PROFILE.prefill_s(8000, 8000**2 / 2), rel=0.1)


def mixture(seed: int, count: int = 40, sharing: bool = True) -> list[Turn]:
    draw, at_s, turns = random.Random(seed), 0.0, []
    for number in range(count):
        at_s += draw.expovariate(2.0)
        tokens = draw.choice([5, 40, 200, 1500])
        blocks: tuple[int, ...] = ()
        if sharing and draw.random() < 0.5:
            blocks = (*range(2), *(1000 * number + k for k in range(2, -(-tokens // 32))))
        turns.append(Turn(at_s, tokens, draw.choice([1, 2, 30, 400]), blocks[: -(-tokens // 32)]))
    return turns


def test_an_idle_cluster_takes_what_the_profile_says() -> None:
    one = setup(prefill=1, decode=1)
    outcome = alone(one, 500, 5)
    own_s = PROFILE.launch_s + PROFILE.prefill_s(500, 500**2 / 2)
    assert outcome.ttft_s == pytest.approx(own_s, rel=0.01)
    assert outcome.tbt_s == pytest.approx(PROFILE.decode_s(1, 502, False), rel=0.01)


def test_two_shards_halve_the_time_and_pay_for_it_once() -> None:
    even = setup(prefill=2, prefill_span_tokens=256)
    sharing = Sharing(gflops=0.02, attention_rate=1e6)
    even = with_fields(even, config=replace(even.config, sharing=sharing))
    two = alone(even, 512)
    assert two.degree == 2
    longer_s = PROFILE.prefill_s(256, 256 * 128 + 256 * 256)
    assert two.ttft_s == pytest.approx(PROFILE.launch_s + longer_s + PROFILE.share_s)
    assert two.sent_bytes["kv"] == MODEL.kv_bytes(2) * 256


def test_a_slow_link_decides_when_keys_arrive() -> None:
    slow = setup(0, 0, 2, profile=replace(PROFILE, link_gbit=1e-4), decode_span_tokens=64)
    outcome = alone(slow, 512)
    assert outcome.ttft_s is not None
    assert outcome.sent_bytes.keys() == {"kv"}
    least_s = outcome.sent_bytes["kv"] * 8 / 1e5
    assert outcome.ttft_s == pytest.approx(PROFILE.launch_s + least_s, rel=0.05)


def test_two_flows_share_a_link() -> None:
    slow = setup(prefill=1, decode=1, profile=replace(PROFILE, link_gbit=1e-3, pass_s=((1, 1e-6),)))
    one = run(slow, [Turn(0.0, 300, 2)]).stopped_s
    two = run(slow, [Turn(0.0, 300, 2), Turn(0.0, 300, 2)]).stopped_s
    assert two == pytest.approx(2 * one, rel=0.1)


def test_a_short_prompt_preempts_a_long_one_which_is_held_back() -> None:
    turns = [Turn(0.0, 3000, 1), Turn(1.0, 16, 1)]
    outcomes = run(setup(prefill=1, decode=1), turns).outcomes
    assert outcomes[1].ttft_s is not None
    assert outcomes[1].ttft_s < 0.1
    assert any(delay.cause == "held back" for delay in outcomes[0].delays)
    fifo = run(setup(prefill=1, decode=1, policy="fcfs"), turns).outcomes
    assert fifo[1].ttft_s is not None
    assert fifo[1].ttft_s > 1.5
    assert any(delay.cause == "shards" for delay in fifo[1].delays)


def test_answers_decoded_together_slow_each_other_as_the_profile_says() -> None:
    turns = [Turn(0.0, 8, 101), Turn(0.0, 8, 101)]
    together = run(setup(prefill=2, decode=1), turns)
    tbt_s = together.outcomes[0].tbt_s
    assert tbt_s == pytest.approx(PROFILE.decode_s(2, 110, False), rel=0.05)
    assert sum(together.steps.values()) == pytest.approx(200, abs=2)


def test_cores_that_shards_share_slow_all_alike() -> None:
    turns = [Turn(0.0, 400, 1), Turn(0.0, 400, 1)]
    own = run(setup(prefill_span_tokens=1000), turns)
    shared = run(setup(profile=replace(PROFILE, cores=1.0), prefill_span_tokens=1000), turns)
    assert shared.stopped_s > 1.8 * own.stopped_s


def test_a_cached_prefix_is_not_computed_again() -> None:
    blocks = tuple(range(20))
    turns = [Turn(0.0, 640, 2, blocks), Turn(5.0, 640, 2, (*blocks[:19], 99))]
    first, second = run(setup(), turns).outcomes
    assert second.cached_tokens == 19 * 32
    assert second.ttft_s is not None
    assert first.ttft_s is not None
    assert second.ttft_s < first.ttft_s / 2
    _, without = run(setup(cache=False), turns).outcomes
    assert without.cached_tokens == 0


def test_a_closed_loop_waits_for_the_answer_before() -> None:
    turns = [Turn(0.0, 64, 50, session="a"), Turn(0.1, 96, 2, session="a", think_s=3.0)]
    first, second = run(setup(), turns).outcomes
    assert first.ended_s is not None
    assert second.arrived_s == pytest.approx(first.ended_s + 3.0)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", ["apart", "mixed", "chunks"])
def test_every_request_ends_once_and_nothing_stays_leased(policy: str, shape: str) -> None:
    made = setup(
        *((0, 0, 4) if shape == "mixed" else (2, 2, 0)),
        pages=140,
        growth_tokens=32,
        policy=policy,
        chunk_tokens=100 if shape == "chunks" else 0,
    )
    simulation = Simulation(made)
    turns = mixture(3)
    found = simulation.run(Workload("mixture", turns, 32))
    assert [outcome.error for outcome in found.outcomes] == [""] * len(turns)
    assert all(outcome.ended_s is not None for outcome in found.outcomes)
    assert found.broken_rules == 0
    assert not simulation.directory.leases().leases
    assert found.queue[-1][1] == 0
    expected = sum(turn.answer_tokens - 1 for turn in turns)
    assert sum(found.steps.values()) == pytest.approx(expected, rel=0.02)


@given(
    seed=st.integers(0, 10_000), policy=st.sampled_from([*POLICIES]), pages=st.integers(125, 400)
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_equal_inputs_give_equal_runs(seed: int, policy: str, pages: int) -> None:
    made = setup(pages=pages, growth_tokens=16, policy=policy)
    one, other = (run(made, mixture(seed, 15)) for _ in range(2))
    assert one.outcomes == other.outcomes
    assert all(outcome.ended_s is not None for outcome in one.outcomes)


def test_answers_that_find_no_room_give_way_and_go_on() -> None:
    turns = [Turn(0.0, 100, 400) for _ in range(8)]
    found = run(setup(prefill=1, decode=1, pages=64, growth_tokens=16), turns)
    assert found.preemptions > 0
    assert all(outcome.ended_s is not None and not outcome.error for outcome in found.outcomes)


@pytest.mark.parametrize("shard", ["prefill-0", "decode-0"])
def test_requests_of_a_lost_shard_run_again(shard: str) -> None:
    turns = [Turn(0.0, 2000, 300), Turn(0.5, 100, 500)]
    found = run(setup(), turns, losses=[Loss(shard, 1.0, 5.0)])
    assert all(outcome.ended_s is not None and not outcome.error for outcome in found.outcomes)
    assert sum(outcome.epochs for outcome in found.outcomes) > 0
    assert any(each.kind == "lost" for each in found.activities)


def test_shards_do_one_thing_at_a_time_unless_work_shares_them() -> None:
    found = run(setup(prefill=2, policy="fcfs", pass_tokens=0), mixture(5))
    by_shard: dict[str, list[tuple[float, float]]] = {}
    for each in found.activities:
        if each.kind == "prefill":
            by_shard.setdefault(each.shard, []).append((each.start_s, each.stop_s))
    for times in by_shard.values():
        for (_, stop_s), (start_s, _) in itertools.pairwise(sorted(times)):
            assert start_s >= stop_s - 1e-6


def test_the_time_alone_lies_between_those_of_lengths_around_it() -> None:
    found = Alone(setup(prefill=1, decode=1, policy="fcfs"))
    for tokens in (1, 7, 100, 1234):
        own_s = PROFILE.launch_s + PROFILE.prefill_s(tokens, tokens**2 / 2)
        assert found(tokens) == pytest.approx(own_s, rel=0.02)


def recorded(made: Setup, turns: Sequence[Turn], path: Path) -> Path:
    """Record a simulated run as a live scheduler does."""
    simulation = Simulation(made)
    log = EventLog(simulation.core, made.config.scheduler, made.schemes())
    simulation.handles = log.handle
    simulation.run(Workload("recorded", turns, 32))
    path.write_bytes(b"".join(line + b"\n" for line in log.lines()))
    return path


@pytest.mark.parametrize("policy", ["sps2", "fcfs", "splitwise"])
def test_a_recorded_run_replays_to_the_same_decisions_and_pages(
    policy: str, tmp_path: Path
) -> None:
    made = setup(pages=140, growth_tokens=16, policy=policy)
    recording = Recording.read(recorded(made, mixture(7), tmp_path / "run.jsonl"))
    core = recording.core()
    directory = DirectoryReplay(core.state())
    for entry in recording.replay(core):
        directory.follow(entry)
    compared = directory.finish()
    assert compared.rooms > 50
    assert compared.differing == []


def test_a_recording_is_a_workload_that_runs_alike(tmp_path: Path) -> None:
    made = setup(growth_tokens=32)
    turns = mixture(11)
    path = recorded(made, turns, tmp_path / "run.jsonl")
    workload = sources.find(str(path))
    assert workload.block_tokens == PAGE
    start_s = turns[0].at_s
    found = [(turn.prompt_tokens, turn.answer_tokens) for turn in workload.turns]
    assert found == [(turn.prompt_tokens, turn.answer_tokens) for turn in turns]
    for read, turn in zip(workload.turns, turns, strict=True):
        assert read.at_s == pytest.approx(turn.at_s - start_s)
    one, other = run(made, turns), Simulation(made).run(workload)
    for before, after in zip(one.outcomes, other.outcomes, strict=True):
        assert after.cached_tokens == before.cached_tokens
        assert after.ttft_s == pytest.approx(before.ttft_s)


def test_a_directory_with_other_pages_is_noticed(tmp_path: Path) -> None:
    made = setup(pages=140, growth_tokens=16)
    path = recorded(made, mixture(7), tmp_path / "run.jsonl")
    recording = Recording.read(path)
    core = recording.core()
    state = core.state()
    members = tuple(
        with_fields(member, shard=replace(member.shard, pages=max(0, member.shard.pages - 1)))
        for member in state.fleet.members
    )
    fewer = replace(state, fleet=replace(state.fleet, members=members))
    directory = DirectoryReplay(fewer)
    for entry in recording.replay(core):
        directory.follow(entry)
    assert directory.finish().differing


def test_a_lost_shard_computes_nothing_from_then_on() -> None:
    made = setup(prefill=1, decode=1)
    turns = [Turn(0.0, 1000, 400)]
    outcome = run(made, turns, losses=[Loss("prefill-0", 0.5, 20.0)]).outcomes[0]
    assert outcome.first_s is not None
    assert outcome.first_s > 20.5 + 1.0
    cut = run(made, turns, losses=[Loss("decode-0", 3.0, 20.0)]).outcomes[0]
    whole = run(made, turns).outcomes[0]
    assert whole.ended_s is not None
    assert cut.ended_s is not None
    left_s = whole.ended_s - 3.0
    assert cut.ended_s > 23.0 + left_s  # nothing was decoded before the loss was noticed


def test_losses_of_one_shard_that_overlap_are_one() -> None:
    found = parse_losses(["prefill-0@6+10", "prefill-0@5+3", "decode-1@5"])
    assert [(loss.shard, loss.at_s) for loss in found] == [("decode-1", 5.0), ("prefill-0", 5.0)]
    assert found[1].for_s == pytest.approx(11.0)


def test_a_session_ends_with_a_turn_that_fails() -> None:
    turns = [
        Turn(0.0, 1000, 2, session="a"),
        Turn(0.1, 1000, 2, session="a", think_s=1.0),
        Turn(5.0, 10, 2),
    ]
    made = setup(prefill=1, decode=1, patience_s=2.0)
    losses = [Loss("decode-0", 0.0, 1e9)]
    outcomes = run(made, turns, losses=losses).outcomes
    assert len(outcomes) == 2
    assert all(outcome.error and outcome.ended_s is not None for outcome in outcomes)


def test_time_goes_on_however_late_it_is() -> None:
    turns = [Turn(each * 1e9, 100, 20) for each in range(4)]
    found = run(setup(), turns)
    assert all(outcome.ended_s is not None for outcome in found.outcomes)


def test_a_slow_link_slows_decoding_with_keys_elsewhere() -> None:
    config = replace(
        setup(decode_span_tokens=64).config, sharing=Sharing(gflops=0.02, link_gbit=10.0)
    )  # both divide the prompt alike
    fast, slow = (
        alone(with_fields(setup(profile=replace(PROFILE, link_gbit=gbit)), config=config), 512, 20)
        for gbit in (100.0, 1e-3)
    )
    assert fast.tbt_s is not None
    assert slow.tbt_s is not None
    moved = fast.sent_bytes["decode_q"] + fast.sent_bytes["decode_state"]
    assert slow.tbt_s - fast.tbt_s == pytest.approx(moved / 19 * 8 / 1e6, rel=0.01)


def test_short_prompts_share_passes() -> None:
    flat = replace(PROFILE, pass_s=((1, 0.5), (1000, 0.51)), pair_s=0.0)
    turns = [Turn(0.0, 20, 1) for _ in range(6)]
    together = run(setup(1, 1, profile=flat, pass_tokens=256), turns).stopped_s
    apart = run(setup(1, 1, profile=flat, pass_tokens=0), turns).stopped_s
    assert apart > 2.9
    assert together < 0.6


def test_chunks_of_several_prompts_share_passes_under_sarathi() -> None:
    flat = replace(PROFILE, pass_s=((1, 0.5), (1000, 0.6)), pair_s=0.0)
    turns = [Turn(0.0, 60, 1) for _ in range(6)]
    made = setup(0, 0, 1, profile=flat, policy="sarathi", chunk_tokens=400)
    assert run(made, turns).stopped_s < 1.2


def test_a_shard_is_busy_only_as_long_as_its_own_part_takes() -> None:
    made = setup(prefill=2, prefill_span_tokens=64, profile=replace(PROFILE, pair_s=1e-5))
    found = run(made, [Turn(0.0, 512, 1)])
    parts = [each for each in found.activities if each.kind == "prefill"]
    assert len(parts) == 2
    assert len({each.stop_s for each in parts}) == 2, "the parts differ, and so do their ends"
