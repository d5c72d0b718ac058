"""`spsctl plan`: known optima on made-up profiles, bisection, nearest misses, configurations."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from sps2.cli.main import reported
from sps2.cli.plan import plan, pools_of
from sps2.cli.simulator.planning import report
from sps2.cli.simulator.planning.bounds import Bounds
from sps2.cli.simulator.planning.candidates import Candidate, Pool, Setups, variants
from sps2.cli.simulator.planning.capacity import climb, crossing, measure
from sps2.cli.simulator.planning.differences import tell_apart
from sps2.cli.simulator.planning.goals import Aims, Goal
from sps2.cli.simulator.planning.loads import Load
from sps2.cli.simulator.planning.plan import Plan, make_plan
from sps2.cli.simulator.planning.settings_file import cluster_of, written
from sps2.cli.simulator.planning.trials import Trials
from sps2.cli.simulator.profile import Profile
from sps2.cli.simulator.statistics import Objectives
from sps2.cli.usage import Command
from sps2.cli.workload import sources
from sps2.cli.workload.requests import Turn, Workload
from sps2.common import config as configuration
from sps2.common.errors import Invalid

APP = typer.Typer()
APP.command(cls=Command)(reported(plan))
MODEL = "llama-3-8b"
PROFILE = Profile(
    name="made up",
    model=MODEL,
    machine="card",
    is_measured=False,
    sources={},
    margin=0.1,
    launch_s=0.01,
    pass_s=((1, 0.01), (100, 0.02), (1000, 0.11), (10_000, 1.01)),
    pair_s=1e-9,
    share_s=0.002,
    step_s=((1, 0.01), (101, 0.02)),
    key_s=1e-8,
    remote_s=0.001,
    link_gbit=1000.0,
    link_latency_s=1e-5,
)


@pytest.fixture
def card(tmp_path: Path) -> Pool:
    """Four cards of a made-up profile."""
    path = tmp_path / "profile.json"
    path.write_bytes(msgspec.json.encode(PROFILE))
    return Pool("card", 4, 1.0, 100.0, path)


def load(source: str, requests: int = 200, seed: int = 0) -> Load:
    return Load(sources.find(source, limit=requests, seed=seed))


def aim(ttft_s: float | None, tbt_s: float | None, goal: Goal = "goodput", **rest: Any) -> Aims:
    return Aims(goal, Objectives(ttft_s, tbt_s), **rest)


def planned(pool: Pool, work: Load, aims: Aims, **rest: Any) -> Plan:
    return make_plan(Setups(MODEL), [pool], work, aims, **rest)


def trials_of(work: Load, aims: Aims, setups: Setups | None = None) -> Trials:
    setups = setups or Setups(MODEL)
    bounds = Bounds(setups, work, aims.objectives, aims.attainment)
    return Trials(setups, work, bounds, aims.objectives, aims.attainment)


def candidate(pool: Pool, prefill: int, decode: int, mixed: int = 0, span: int = 1024) -> Candidate:
    return Candidate(pool, prefill, decode, mixed, 1, span, 0, "sps2")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(APP, [*map(str, arguments)])


@given(
    st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(0.01, 0.5), st.sampled_from((1.12, 1.6))
)
def test_climbing_finds_the_threshold(
    threshold: float, guess: float, tolerance: float, growth: float
) -> None:
    low, high = climb(lambda rate: rate <= threshold, guess, 1e4, tolerance, growth)
    if low:
        assert low <= threshold < high <= low * (1 + tolerance) * (1 + 1e-9)
    else:
        assert threshold < guess * 1e-3 * (1 + 1e-9)


def test_climbing_ends_at_the_bound_and_at_nothing() -> None:
    assert climb(lambda rate: True, 1.0, 5.0, 0.1) == (5.0, 5.0)
    assert climb(lambda rate: True, 9.0, 5.0, 0.1) == (5.0, 5.0)
    assert climb(lambda rate: False, 1.0, 5.0, 0.1)[0] == 0.0


def test_crossing_joins_points_by_straight_lines() -> None:
    points: list[tuple[float, float | None]] = [(1.0, 1.0), (2.0, 0.8), (3.0, 0.2)]
    assert crossing(points, 0.9, 10.0) == pytest.approx(1.5)
    assert crossing(points, 0.9, 1.2) == 1.2
    assert crossing(points[1:], 0.9, 10.0) is None
    assert crossing(points[:1], 0.9, 10.0) == 1.0
    assert crossing([(1.0, 1.0), (4.0, None)], 0.9, 10.0) == 2.0


@pytest.mark.parametrize("shards", [(1, 1, 0), (2, 1, 0), (0, 0, 2)])
def test_bisection_agrees_with_a_sweep_of_all_rates(card: Pool, shards: Sequence[int]) -> None:
    aims = aim(0.5, 0.03)
    made = candidate(card, *shards)
    trials = trials_of(load("range:200-1500,20-60"), aims)
    found = measure(trials, made, trials.bounds.of(made).likely, 200, 0.03)
    swept = trials_of(trials.load, aims)
    most, best = trials.bounds.of(made).most, 0.0
    rate = found.rate.value / 2
    while rate <= most and swept.run(made, rate, 200, "never").passes:
        best, rate = rate, rate * 1.02
    assert found.rate.value == pytest.approx(best, rel=0.06)
    assert found.rate.low <= found.rate.value <= found.rate.high
    assert found.slower < found.rate.value
    assert found.rate.value <= found.faster


def test_a_run_that_stops_early_would_not_have_passed(card: Pool) -> None:
    work, aims = load("range:200-1500,20-60"), aim(0.3, 0.02)
    made = candidate(card, 1, 1)
    stopped = 0
    for rate in (1.0, 3.0, 5.0, 7.0, 9.0, 12.0, 20.0):
        early = trials_of(work, aims).run(made, rate, 200)
        whole = trials_of(work, aims).run(made, rate, 200, "never")
        assert early.passes == whole.passes
        assert early.met >= whole.met or not early.is_stopped
        stopped += early.is_stopped
    assert stopped


def test_a_short_run_has_the_batches_of_a_long_one(card: Pool) -> None:
    trials = trials_of(load("range:200-1500,100-300", 800), aim(1.0, 0.05))
    made = candidate(card, 1, 1)
    rate = 0.7 * trials.bounds.of(made).likely
    short, long = (trials.run(made, rate, count, "never") for count in (100, 800))
    assert short.tbt_s == pytest.approx(long.tbt_s, rel=0.15)
    assert short.tbt_s > 1.05 * trials.bounds.of(made).tbt_s


def test_no_rate_beyond_the_formulas_is_kept_up_with(card: Pool) -> None:
    work, aims = load("range:200-1500,20-60", 600), aim(1.0, 0.02)
    trials = trials_of(work, aims)
    for shards in ((1, 1, 0), (1, 3, 0), (3, 1, 0), (0, 0, 1), (0, 0, 3)):
        made = candidate(card, *shards)
        assert not trials.run(made, 1.1 * trials.bounds.of(made).most, 600).passes


def test_long_prompts_take_prefill_shards_and_long_answers_decode_shards(card: Pool) -> None:
    tight = 0.0125  # a mixed shard's steps are slower beside a prefill
    prompts = planned(card, load("fixed:4000,8", 100), aim(6.0, tight, "throughput")).found[0]
    answers = planned(card, load("fixed:64,300", 100), aim(6.0, tight, "throughput")).found[0]
    assert (prompts.candidate.prefill, prompts.candidate.decode) == (3, 1)
    assert answers.candidate.decode > answers.candidate.prefill


def test_a_tight_ttft_takes_more_than_one_shard_for_a_prompt(tmp_path: Path) -> None:
    """For a loose one the scheduler itself takes fewer, so that any span will do."""
    path = tmp_path / "slow.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(PROFILE, share_s=0.2)))
    pool, work = Pool("card", 3, profile=path), load("fixed:6000,2", 120)
    tight = planned(pool, work, aim(0.55, None, "throughput")).found[0].candidate
    assert tight.degree(6000) >= 2  # one shard takes 0.63 s for a prompt


def test_a_model_that_needs_two_cards_gets_them() -> None:
    pool = Pool("A100-80G", 4, 1.5, 400.0)
    made = make_plan(Setups("yi-34b-200k"), [pool], load("fixed:500,20", 60), aim(2.0, 0.1))
    assert {each.candidate.tp for each in made.found} == {2}
    alone = [each for each in made.points if each.candidate.tp == 1]
    assert alone
    assert all(each.how == "screened" and each.limit == "memory" for each in alone)
    assert "take tp 2" in alone[0].reason


def test_provisioning_takes_the_least_that_serves_the_rate(card: Pool) -> None:
    work = load("fixed:900,20")
    few = planned(card, work, aim(0.5, 0.05, "cost", rate=1.0))
    many = planned(card, work, aim(0.5, 0.05, "cost", rate=15.0))
    assert few.found[0].candidate.cards == 1
    assert few.found[0].candidate.cards < many.found[0].candidate.cards
    for made in (few, many):
        assert made.found[0].rate.value >= made.aims.rate
        dearer = [each for each in made.points if each.reason == "what costs less is enough"]
        least = made.found[0].candidate.price or 0.0
        assert all((each.candidate.price or 0.0) > least for each in dearer)
        for point in made.points:  # all that costs less was tried, or is impossible
            if (point.candidate.price or 0.0) < least:
                assert point.limit


def test_the_price_decides_between_kinds_of_cards() -> None:
    def choice(price: float) -> str:
        pools = [Pool("A100-80G", 1, 1.0, 400.0), Pool("H100-SXM", 1, price, 700.0)]
        aims = aim(1.0, None, "cost", rate=0.5)
        made = make_plan(Setups(MODEL), pools, load("fixed:900,20", 60), aims)
        return made.found[0].candidate.pool.name

    assert choice(0.5) == "H100-SXM"
    assert choice(2.0) == "A100-80G"


def test_a_budget_is_kept(card: Pool) -> None:
    aims = aim(0.5, 0.05, "throughput", budget=2.0)
    made = planned(card, load("fixed:900,20"), aims)
    assert made.found[0].candidate.cards == 2
    over = [each for each in made.points if each.limit == "budget"]
    assert {each.candidate.cards for each in over} == {3, 4}


def test_candidates_that_differ_can_be_told_apart_and_equal_ones_cannot(card: Pool) -> None:
    work, aims = load("range:200-1500,20-60"), aim(0.5, 0.05, "throughput")
    trials = trials_of(work, aims)

    def capacity(made: Candidate) -> Any:
        return measure(trials, made, trials.bounds.of(made).likely, 200, 0.04)

    one, two = (capacity(candidate(card, each, 1)) for each in (1, 2))
    same = capacity(candidate(card, 2, 1, span=1025))
    assert tell_apart(trials, aims, two, one, 200).is_distinct
    apart = tell_apart(trials, aims, two, same, 200)
    assert not apart.is_distinct
    assert apart.ratio == pytest.approx(1.0, rel=0.05)


def test_equal_arguments_make_the_same_plan(card: Pool) -> None:
    def made(seed: int) -> bytes:
        work = load("range:200-1500,20-60", 60, seed)
        pool = replace(card, cards=3)
        return report.document(planned(pool, work, aim(0.5, 0.05)), "", 0.0)

    assert made(1) == made(1)
    assert made(1) != made(2)


def test_variants_are_those_that_make_a_difference(card: Pool) -> None:
    made = candidate(card, 1, 1)
    chunks = {each.chunk_tokens for each in variants(made, 3000, ())}
    assert chunks == {2048}  # one prefill shard has no SP degree, and 8,192 cuts no prompt
    assert {each.policy for each in variants(made, 3000, ("lars",))} == {"sps2", "lars"}
    spread = [*variants(candidate(card, 3, 1), 3000, ())]
    degrees = {each.degree(3000) for each in spread}
    assert degrees == {1, 3}
    assert len(spread) == len(set(spread))


def test_a_load_has_the_same_requests_at_every_rate() -> None:
    work = load("azure-conv", 200)
    slow, fast = work.at(1.0), work.at(4.0)
    assert [t.prompt_tokens for t in slow.turns] == [t.prompt_tokens for t in fast.turns]
    assert slow.turns[-1].at_s == pytest.approx(4 * fast.turns[-1].at_s)
    assert slow.turns[-1].at_s == pytest.approx(200.0, rel=0.01)
    part = work.at(2.0, 50)
    assert part.turns[-1].at_s == pytest.approx(25.0)
    assert load("agents", 60).unit == "sessions/s"
    assert work.unit == "requests/s"


def test_a_load_needs_requests_that_come_over_time() -> None:
    with pytest.raises(Invalid, match="5 requests"):
        load("azure-conv", 5)
    with pytest.raises(Invalid, match="all requests of x come at once"):
        Load(Workload("x", [Turn(0.0, 10, 10)] * 30))


def test_the_configuration_is_what_was_simulated(card: Pool, tmp_path: Path) -> None:
    setups = Setups(MODEL)
    for made in (candidate(card, 3, 1), candidate(card, 0, 0, 4, 512)):
        made = replace(made, chunk_tokens=2048, policy="lars")
        path = tmp_path / "cluster.toml"
        path.write_text(written(made, setups, "a note " * 40))
        loaded = configuration.load(path)
        assert loaded == cluster_of(made, setups)
        assert (loaded.prefill, loaded.mixed) == (made.prefill, made.mixed)
        assert (loaded.scheduler.chunk_tokens, loaded.scheduler.policy) == (2048, "lars")
        assert loaded.scheduler.max_queue == configuration.Scheduler().max_queue
        assert loaded.model == MODEL


def test_nothing_meets_an_slo_that_no_shard_can(card: Pool) -> None:
    made = planned(card, load("fixed:6000,20", 60), aim(0.05, None))
    assert not made.found
    assert made.miss is not None
    assert made.miss.point.limit == "TTFT"
    assert made.miss.point.candidate.degree(6000) == 4
    assert "over 50 ms" in made.miss.by
    flag = next(each for each in made.miss.helps if each.startswith("--ttft-ms"))
    enough = float(flag.split()[1]) / 1000
    easier = planned(card, load("fixed:6000,20", 60), aim(enough * 1.5, None))
    assert easier.found


def test_a_rate_that_nothing_serves_has_a_nearest_miss(card: Pool) -> None:
    aims = aim(0.5, 0.05, "cost", rate=100.0)
    made = planned(card, load("fixed:900,20"), aims)
    assert not made.found
    assert made.miss is not None
    assert made.miss.point.candidate.cards == 4
    assert "less than 100" in made.miss.by
    rate = float(made.miss.helps[0].split()[1])
    assert planned(card, load("fixed:900,20"), replace(aims, rate=rate)).found


@pytest.fixture
def profile(card: Pool) -> Path:
    assert card.profile is not None
    return card.profile


def test_the_command_writes_a_configuration_and_all_points(profile: Path, tmp_path: Path) -> None:
    toml, points = tmp_path / "out.toml", tmp_path / "points.json"
    done = run(
        *("--model", MODEL, "--profile", profile, "--cards", 3, "--workload", "fixed:900,20"),
        *("--ttft-ms", 500, "--requests", 100, "--output", toml, "--json", points),
    )
    assert done.exit_code == 0, done.output
    assert "choice: " in done.output
    assert "binds" in done.output
    assert "runner-up: " in done.output
    assert "the two can" in done.output
    found = json.loads(points.read_bytes())
    loaded = configuration.load(toml)
    assert all(getattr(loaded, each) == found["choice"][each] for each in ("prefill", "mixed"))
    assert found["configuration"] == toml.read_text()
    assert sum(found["judged"].values()) == len(found["points"])
    assert found["best"][0]["rate"]["low"] <= found["best"][0]["rate"]["value"]


def test_the_command_fails_with_the_nearest_miss(profile: Path, tmp_path: Path) -> None:
    toml = tmp_path / "out.toml"
    done = run(
        *("--model", MODEL, "--profile", profile, "--cards", 2, "--workload", "fixed:6000,20"),
        *("--ttft-ms", 5, "--requests", 60, "--output", toml),
    )
    assert done.exit_code == 1
    assert "nearest: " in done.output
    assert "what would help: --ttft-ms" in done.output
    assert not toml.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--hardware", "B300:8"), "no card is known by the name 'B300'"),
        (("--hardware", "H100-SXM"), "give --cards, or h100-sxm:8"),
        (("--hardware", "H100-SXM:8", "--cards", "4"), "leave out --cards 4"),
        (("--hardware", "H100-SXM:x"), "give a number of cards"),
        (("--hardware", "H100-SXM:2", "--hardware", "h100-sxm:4"), "twice"),
        (("--hardware", "H100-SXM:2", "--tp", "2"), "too few"),
        (("--hardware", "H100-SXM:8", "--tp", "3"), "tp 3 is not possible"),
        (("--hardware", "H100-SXM:2", "--price", "A100-80G=3"), "none of the cards"),
        (("--hardware", "H100-SXM:2", "--price", "cheap"), "give a number"),
        (("--hardware", "H100-SXM:2", "--watts", "-3"), "more than 0"),
        (("--hardware", "H100-SXM:2", "--model", "no-such"), "no-such"),
        (("--hardware", "H100-SXM:2", "--policy", "best"), "no policy 'best'"),
        (("--hardware", "H100-SXM:2", "--for", "cost"), "give --rate"),
        (("--hardware", "H100-SXM:2", "--workload", "no-such"), "no-such"),
        ((), "either a profile"),
    ],
)
def test_contradictions_are_refused(options: Sequence[str], message: str) -> None:
    done = run("--ttft-ms", "500", *options)
    assert done.exit_code == 1
    assert message.lower() in " ".join(done.output.split()).lower()


def test_a_plan_needs_an_slo_and_prices_where_they_decide(profile: Path) -> None:
    assert "needs an SLO" in run("--hardware", "H100-SXM:2").output
    options = ("--model", MODEL, "--profile", profile, "--cards", 2, "--ttft-ms", 500, "--rate", 1)
    assert "give --price" in run(*options, "--for", "cost").output
    assert "give --watts" in run(*options, "--for", "power").output
    assert "Give --cards" in run("--profile", profile, "--ttft-ms", 500).output


def test_pools_have_the_prices_that_are_given() -> None:
    pools = pools_of(["A100-80G:4", "h100-sxm:8"], None, None, ["H100-SXM=9", "2"], ["500"])
    assert pools == [Pool("A100-80G", 4, 2.0, 500.0), Pool("H100-SXM", 8, 9.0, 500.0)]
