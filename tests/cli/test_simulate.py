"""`spsctl simulate`: what it prints and writes, and what it refuses."""

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from sps2.cli.main import app
from sps2.cli.simulator import hardware, models
from sps2.cli.simulator.clusters import Wanted, setup_of, usual_scheduler

SMALL = ("--requests", "30", "--rate", "4", "--prefill", "2", "--decode", "2")
H100 = ("--hardware", "H100-SXM", *SMALL)


def simulate(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["simulate", *arguments], env={"COLUMNS": "200"})


def test_a_run_prints_its_figures_and_writes_them(tmp_path: Path) -> None:
    result = simulate(
        *H100,
        *("--policy", "sps2,fcfs", "--json", str(tmp_path / "a.json")),
        *("--page", str(tmp_path / "a.html"), "--ttft-ms", "200"),
    )
    assert result.exit_code == 0, result.output
    assert "TTFT, mean" in result.output
    found = json.loads((tmp_path / "a.json").read_bytes())
    assert [run["policy"] for run in found["runs"]] == ["sps2", "fcfs"]
    first = found["runs"][0]
    assert first["requests"] == first["completed"] == 30
    mean = first["ttft_s"]["all"]["mean"]
    assert mean["low"] < mean["value"] < mean["high"]
    assert len(found["requests"][0]) == 30
    assert "<script" in (tmp_path / "a.html").read_text()


def test_a_sweep_has_a_run_for_each_rate(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    arguments = ("--hardware", "H100-SXM", "--requests", "20", "--rate", "1,5", "--mixed", "2")
    result = simulate(*arguments, "--json", str(path))
    assert result.exit_code == 0, result.output
    rates = [run["rate"] for run in json.loads(path.read_bytes())["runs"]]
    assert rates[1] > 3 * rates[0]


def test_a_seed_gives_the_same_figures(tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        path = tmp_path / name
        assert simulate(*H100, "--seed", "5", "--json", str(path)).exit_code == 0
        texts.append(path.read_bytes())
    assert texts[0] == texts[1]


def test_a_lost_shard_shows(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    arguments = ("--requests", "40", "--rate", "8", "--mixed", "2", "--hardware", "H100-SXM")
    assert simulate(*arguments, "--lose", "mixed-0@1+1", "--json", str(path)).exit_code == 0
    run = json.loads(path.read_bytes())
    assert run["runs"][0]["completed"] == 40
    assert any(outcome["epochs"] for outcome in run["requests"][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (SMALL, "give either a profile"),
        ((*H100, "--policy", "best"), "there is no policy 'best'"),
        ((*H100, "--mixed", "2"), "leave out --prefill"),
        (("--hardware", "TPU", *SMALL), "H100-SXM"),
        ((*H100, "--model", "nobody/has-this"), "llama-3.1-8b"),
        ((*H100, "--rate", "fast"), "numbers such as"),
        ((*H100, "--rate", "0"), "over 0"),
        ((*H100, "--lose", "decode-0"), "SHARD@SECONDS"),
        ((*H100, "--lose", "decode-7@1"), "decode-1"),
        ((*H100, "--workload", "nothing-like-this"), "azure-conv"),
        ((*H100, "--workload", "fixed:140000,10"), "--longest"),
        ((*H100, "--tp", "3"), "3"),
        (("--hardware", "H100-SXM", "--model", "llama-3.1-70b", *SMALL), "tp"),
        ((*H100, "--profile", "nowhere.json"), "give either"),
        (("--profile", "nowhere.json", *SMALL), "nowhere.json"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(
    arguments: tuple[str, ...], message: str
) -> None:
    result = simulate(*arguments)
    assert result.exit_code == 1, result.output
    assert message in result.output


def test_pipelines_are_not_simulated(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text("pp = 2\n")
    result = simulate("--hardware", "H100-SXM", *SMALL, "--config", str(file))
    assert result.exit_code == 1, result.output
    assert "`pp` cannot be simulated" in result.output


def test_a_profile_of_other_weights_is_refused(tmp_path: Path) -> None:
    made = hardware.roofline(models.named("llama-3.1-8b"), "H100-SXM")
    profile = tmp_path / "profile.json"
    profile.write_bytes(msgspec.json.encode(msgspec.structs.replace(made, fingerprint="other")))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "architectures": ["LlamaForCausalLM"],
                "vocab_size": 97,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-5,
            }
        )
    )
    (folder / "model.safetensors").write_bytes(b"weights")
    result = simulate("--profile", str(profile), "--model", str(folder), *SMALL)
    assert result.exit_code == 1, result.output
    assert "whose weights are others" in result.output


def test_a_broken_trace_names_its_row(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:47.6805900,-3,44\n"
    )
    result = simulate("--hardware", "H100-SXM", "--workload", str(trace))
    assert result.exit_code == 1
    assert "row 3" in result.output


def test_usual_settings_grow_with_the_speed_of_a_shard() -> None:
    slow, fast = (
        usual_scheduler(setup_of(Wanted("llama-3.1-8b", hardware=card)).profile)
        for card in ("A100-80G", "H100-SXM")
    )
    assert slow.prefill_span_tokens <= fast.prefill_span_tokens
    assert fast.decode_span_tokens > 10_000
