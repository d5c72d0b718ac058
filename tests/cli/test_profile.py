"""`spsctl profile`: constants are found in noisy measurements, and errors are told honestly."""

import json
import random
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from sps2.cli.main import reported
from sps2.cli.profile import made_from, profile, target_of
from sps2.cli.simulator import least_squares
from sps2.cli.simulator.fitting import (
    Behind,
    Prompt,
    Share,
    Step,
    checked,
    fit,
    margin_of,
    side_by_side,
    split,
    step_s,
    ttft_s,
)
from sps2.cli.simulator.measuring import Measured
from sps2.cli.simulator.models import named
from sps2.cli.simulator.probes import Bytes
from sps2.cli.simulator.profile import Profile, at, read_profile
from sps2.common.config import Cluster
from sps2.common.errors import Invalid, Refused
from sps2.services.scheduler.hardware import USUAL

from .acted import acted
from .played import shown
from .top.acts import status

SHAPE = named("smollm2-135m")
TRUE = Profile(
    name="true",
    model="smollm2-135m",
    machine="made up",
    is_measured=True,
    sources={},
    margin=0.0,
    launch_s=0.01,
    pass_s=((4, 0.03), (16, 0.04), (64, 0.1), (256, 0.32), (2048, 2.5)),
    pair_s=4e-7,
    share_s=0.05,
    step_s=((1, 0.015), (4, 0.024), (16, 0.05)),
    key_s=2e-6,
    remote_s=0.02,
    link_gbit=10.0,
    link_latency_s=1e-4,
    cores=1.4,
)
LENGTHS = (4, 7, 12, 20, 35, 60, 106, 187, 329, 581, 1024, 2048)
command = typer.Typer()
command.command()(reported(profile))


def shares(tokens: int) -> tuple[Share, ...]:
    half = tokens // 2
    rest = tokens - half
    return Share(half, half * half / 2), Share(rest, rest * (rest / 2 + half))


def prompts(true: Profile, noise: random.Random, moved: float = 0.0) -> list[Prompt]:
    """Measurements as a cluster with these constants would give them."""

    def off() -> float:
        return noise.lognormvariate(0, 0.03)

    def seen(of: tuple[Share, ...], is_shared: bool, attention_s: float = 0.0) -> Prompt:
        nbytes = moved * sum(share.rows for share in of) if is_shared else 0.0
        exact = ttft_s(true, Prompt(of, 0.0, 0.0, 0.0, is_shared, nbytes))
        found_s = exact * off()
        launch_s = true.launch_s * off()
        return Prompt(of, found_s, found_s - launch_s, attention_s, is_shared, nbytes)

    alone = [
        seen((Share(n, n * n / 2),), False, (0.001 + 2e-5 * n + true.pair_s * n * n / 2) * off())
        for n in LENGTHS
    ]
    beside = [seen((Share(n, n * n / 2),) * 2, False) for n in (32, 64, 128, 256)]
    return alone + beside + [seen(shares(n), True) for n in (64, 152, 362, 861, 2048)]


def steps(true: Profile, noise: random.Random) -> list[Step]:
    kinds = [(1, keys, False, 1) for keys in (30, 300, 1000, 2000)]
    kinds += [(each, 40 * each, False, 2) for each in (1, 2, 4, 8, 16)]
    kinds += [(1, keys, True, 1) for keys in (1200, 2000, 3000)]
    blank = [Step(float(a), float(b), 0.0, c, d) for a, b, c, d in kinds]
    return [
        msgspec.structs.replace(each, seconds=step_s(true, each) * noise.lognormvariate(0, 0.03))
        for each in blank
    ]


@pytest.mark.parametrize("seed", range(5))
def test_known_constants_are_found_in_noisy_measurements(seed: int) -> None:
    noise = random.Random(seed)
    found = fit(prompts(TRUE, noise), steps(TRUE, noise), 2.0).put_into(TRUE)
    assert found.launch_s == pytest.approx(TRUE.launch_s, rel=0.1)
    for rows in (8, 40, 200, 1000, 4000):
        assert at(found.pass_s, rows) == pytest.approx(at(TRUE.pass_s, rows), rel=0.12)
    assert found.pair_s == pytest.approx(TRUE.pair_s, rel=0.15)
    assert found.cores == pytest.approx(TRUE.cores, abs=0.16)
    assert found.share_s == pytest.approx(TRUE.share_s, abs=0.03)
    for sequences in (1, 4, 10, 16):
        assert at(found.step_s, sequences) == pytest.approx(at(TRUE.step_s, sequences), rel=0.15)
    assert found.key_s == pytest.approx(TRUE.key_s, rel=0.5)
    assert found.remote_s == pytest.approx(TRUE.remote_s, rel=0.2)


def test_one_disturbed_measurement_changes_little() -> None:
    noise = random.Random(0)
    seen, decoded = prompts(TRUE, noise), steps(TRUE, noise)
    seen[7] = msgspec.structs.replace(seen[7], ttft_s=4 * seen[7].ttft_s)
    decoded[2] = msgspec.structs.replace(decoded[2], seconds=3 * decoded[2].seconds)
    found = fit(seen, decoded, 2.0).put_into(TRUE)
    assert at(found.pass_s, 200) == pytest.approx(at(TRUE.pass_s, 200), rel=0.2)
    assert at(found.pass_s, 1000) == pytest.approx(at(TRUE.pass_s, 1000), rel=0.12)
    assert at(found.step_s, 1) == pytest.approx(at(TRUE.step_s, 1), rel=0.15)


def test_a_slow_link_is_found_and_a_fast_one_counts_as_hidden() -> None:
    slow = msgspec.structs.replace(TRUE, link_gbit=0.1)
    found = fit(prompts(slow, random.Random(1), moved=5e4), steps(slow, random.Random(1)), 2.0)
    assert found.link_gbit == pytest.approx(0.1)
    fast = fit(prompts(TRUE, random.Random(1), moved=5e4), steps(TRUE, random.Random(1)), 2.0)
    assert fast.link_gbit is None
    assert fast.put_into(TRUE).link_gbit == TRUE.link_gbit


def test_a_link_is_never_slower_than_what_was_seen_on_it() -> None:
    slow = msgspec.structs.replace(TRUE, link_gbit=0.1)
    seen = [
        msgspec.structs.replace(each, exchange_s=each.moved * 8e-9)  # as if at 1 Gbit/s
        for each in prompts(slow, random.Random(1), moved=5e4)
    ]
    found = fit(seen, steps(slow, random.Random(1)), 2.0)
    assert found.link_gbit is None or found.link_gbit >= 1.0


def test_shards_with_devices_of_their_own_share_no_cores() -> None:
    own = msgspec.structs.replace(TRUE, cores=0.0)
    noise = random.Random(2)
    found = fit(prompts(own, noise), steps(own, noise), 0.0)
    assert found.cores == 0.0
    assert found.share_s == pytest.approx(TRUE.share_s, abs=0.02)


@pytest.mark.parametrize(
    ("seconds", "cores", "expected"),
    [
        ([3.0], 1.0, 3.0),
        ([3.0, 3.0], 0.0, 3.0),
        ([3.0, 3.0], 2.0, 3.0),
        ([3.0, 3.0], 1.0, 6.0),
        ([1.0, 3.0], 1.0, 4.0),
        ([1.0, 3.0], 1.5, 1.0 * 2 / 1.5 + 2.0),
        ([2.0, 2.0, 2.0], 2.0, 3.0),
    ],
)
def test_work_side_by_side_shares_cores(
    seconds: list[float], cores: float, expected: float
) -> None:
    assert side_by_side(seconds, cores) == pytest.approx(expected)


def test_a_third_is_held_out_and_never_an_end() -> None:
    seen = prompts(TRUE, random.Random(3))
    fitted, held_out = split(seen, lambda each: (len(each.shares), each.is_shared))
    assert len(fitted) + len(held_out) == len(seen)
    assert {each.shares[0].rows for each in held_out if each.is_alone} == {7, 35, 187, 1024}
    assert [each.is_alone for each in held_out] == [True] * 4 + [False] * 2
    assert split([1, 2], lambda each: 0) == [[1, 2], []]  # type: ignore[type-var]


def test_the_error_is_the_mean_of_relative_errors_with_its_interval() -> None:
    found = checked([(1.1, 1.0), (1.8, 2.0), (3.0, 3.0), (5.2, 4.0)])
    assert found.error == pytest.approx((0.1 + 0.1 + 0.0 + 0.3) / 4)
    assert found.residuals == pytest.approx((1.1, 0.9, 1.0, 1.3))
    assert 0.0 < found.low < found.error < found.high <= 0.3
    assert margin_of([found]) == pytest.approx(1.96 * (0.11 / 4) ** 0.5)
    assert margin_of([]) == 0.0


def test_a_profile_is_checked_with_points_that_it_was_not_fitted_to() -> None:
    noise = random.Random(4)
    found = Measured(prompts(TRUE, noise), steps(TRUE, noise), [], [Bytes(100, 100)] * 3, 2)
    cluster = Cluster(prefill=2, decode=2, threads=1)
    made = made_from(found, cluster, shown(), SHAPE, "f00", 0)
    held_out = split(found.prompts, lambda each: (len(each.shares), each.is_shared))[1]
    errors = [abs(ttft_s(made, each, True) / each.ttft_s - 1) for each in held_out]
    assert made.checks["ttft"].error == pytest.approx(sum(errors) / len(errors))
    assert made.checks["ttft"].error < 0.12
    assert made.checks["tbt"].error < 0.12
    assert made.checks["bytes"].error == 0.0
    assert made.margin > 0.0
    assert made.fingerprint == "f00"
    assert made.link_gbit == USUAL.link_gbit
    assert made.link_latency_s == pytest.approx(made.remote_s / 60)
    assert {"launch_s", "pass_s", "pair_s", "share_s", "step_s", "key_s", "remote_s"} <= {
        *made.sources
    }


def test_waits_for_a_cached_prefix_are_found() -> None:
    noise = random.Random(5)
    seen = [
        Behind(
            cached,
            tokens,
            TRUE.launch_s
            + TRUE.prefill_s(tokens, tokens * tokens / 2)
            + noise.lognormvariate(0, 0.03) * (0.08 + 9e-7 * cached * tokens),
        )
        for cached, tokens in ((500, 16), (1000, 16), (1000, 128), (2000, 128))
    ]
    found = fit(prompts(TRUE, noise), steps(TRUE, noise), 2.0, seen)
    assert found.prefix_s == pytest.approx(0.08, rel=0.4)
    assert found.prefix_pair_s == pytest.approx(9e-7, rel=0.4)
    none = fit(prompts(TRUE, noise), steps(TRUE, noise), 2.0)
    assert (none.prefix_s, none.prefix_pair_s) == (None, None)
    assert TRUE.behind_s(100.0) == pytest.approx(100 * TRUE.pair_s)
    assert none.put_into(TRUE).waits_behind_s == none.remote_s


def test_coefficients_are_never_negative() -> None:
    found = least_squares.fit([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]], [3.0, 2.0, 1.0])
    assert min(found) >= 0.0
    assert found[1] == 0.0
    exact = least_squares.fit([[1.0, 1.0], [1.0, 2.0], [1.0, 5.0]], [3.0, 5.0, 11.0])
    assert exact == pytest.approx([1.0, 2.0])
    same = least_squares.fit([[1.0, 1.0], [2.0, 2.0]], [2.0, 4.0])
    assert sum(same) == pytest.approx(2.0)


def test_only_a_complete_cluster_is_measured() -> None:
    cluster = Cluster(prefill=2, decode=2, threads=1)
    with pytest.raises(Refused, match="not complete: 1 of 2 decode shards"):
        target_of(cluster, status(ready=False), SHAPE, 2, 8192)
    with pytest.raises(Refused, match="not complete: prefill-1"):
        target_of(cluster, status(missing="prefill-1"), SHAPE, 2, 8192)
    found = target_of(cluster, shown(), SHAPE, 2, 8192)
    assert (found.prefillers, found.decoders, found.longest) == (2, 2, 4096 - 64)
    assert target_of(cluster, shown(), SHAPE, 2, 512).longest == 512 - 64


def test_without_a_cluster_it_says_how_to_start_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 1
    assert "no cluster is up; start one with `spsctl up`" in result.output


def test_a_file_that_cannot_be_written_is_named_before_measuring(tmp_path: Path) -> None:
    with acted(tmp_path, "x"):
        given = ["--config", str(tmp_path / "cluster.toml"), "-o", "/proc/none/profile.json"]
        result = CliRunner().invoke(command, given)
    assert result.exit_code == 1
    assert "cannot write /proc/none/profile.json" in result.output


def test_a_model_that_is_not_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))
    with acted(tmp_path, "x"):
        result = CliRunner().invoke(command, ["--config", str(tmp_path / "cluster.toml")])
    assert result.exit_code == 1
    assert "'tiny'" in result.output


def test_a_file_that_is_no_profile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(msgspec.json.encode(TRUE))
    assert read_profile(path) == TRUE
    path.write_text("{}")
    with pytest.raises(Invalid, match=r"profile\.json: not a profile"):
        read_profile(path)
    broken = json.loads(msgspec.json.encode(TRUE)) | {"pass_s": [[4, 0.1], [4, 0.2]]}
    path.write_text(json.dumps(broken))
    with pytest.raises(Invalid, match="pass_s needs points with rising counts"):
        read_profile(path)


def test_a_slower_machine_takes_longer_for_everything() -> None:
    twice = TRUE.slowed(2.0)
    for rows, pairs in ((1, 0.0), (100, 1e4), (3000, 4e6)):
        assert twice.prefill_s(rows, pairs) == pytest.approx(2 * TRUE.prefill_s(rows, pairs))
    assert twice.decode_s(3, 900.0, True) == pytest.approx(2 * TRUE.decode_s(3, 900.0, True))
    assert twice.launch_s == pytest.approx(2 * TRUE.launch_s)
    assert twice.waits_behind_s == pytest.approx(2 * TRUE.waits_behind_s)
    assert twice.link_gbit == TRUE.link_gbit
