"""`spsctl bench serve` against a server that is not ours."""

import asyncio
import json
import signal
import ssl
import subprocess
import sys
import threading
from io import StringIO
from pathlib import Path

import pytest
import trustme
from rich.console import Console

from sps2.cli import ports
from sps2.cli.workload.arrivals import Arrivals
from sps2.common.api import ListModels, Model, Models

from ..waiting import until
from .acted import Acted, acted
from .bench_serving import SMALL, measured, run
from .foreign import Foreign, serving


def test_the_figures_are_those_of_the_server(tmp_path: Path) -> None:
    with serving(Foreign(first_s=0.1, gap_s=0.02)) as server:
        found = measured(server, tmp_path, "--metric-percentiles", "50,99.5")
    assert found["completed"] == 6
    assert found["failed"] == 0
    assert found["model_id"] == "foreign"
    assert found["total_input_tokens"] == 6 * 40
    assert found["total_output_tokens"] == 6 * 5
    assert 100 <= found["mean_ttft_ms"] <= found["mean_e2el_ms"] - 80
    assert 20 <= found["mean_tpot_ms"] == pytest.approx(found["mean_itl_ms"])
    assert found["mean_e2el_ms"] <= 1000 * found["duration"]
    assert found["mean_e2el_ms"] == pytest.approx(
        found["mean_ttft_ms"] + 4 * found["mean_tpot_ms"], rel=1e-6
    )
    assert found["p50_ttft_ms"] <= found["p99.5_ttft_ms"]
    assert found["request_throughput"] == pytest.approx(6 / found["duration"])
    assert found["output_throughput"] == pytest.approx(30 / found["duration"])
    assert found["total_token_throughput"] == pytest.approx(270 / found["duration"])
    assert found["max_concurrent_requests"] == 6
    assert found["request_goodput"] is None
    assert [len(itl) for itl in found["itls"]] == [4] * 6
    assert found["generated_texts"] == [" w0 w1 w2 w3 w4"] * 6


def test_what_is_asked(foreign: Foreign, tmp_path: Path) -> None:
    measured(foreign, tmp_path)
    body = foreign.bodies[0]
    assert foreign.paths == ["/v1/completions"] * 6
    assert len(body["prompt"]) == 40
    assert all(isinstance(each, int) and 0 < each < 30_000 for each in body["prompt"])
    assert body["max_tokens"] == 5
    assert body["stream"] is body["ignore_eos"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert "temperature" not in body
    assert len({tuple(each["prompt"][:4]) for each in foreign.bodies}) == 6


def test_fields_and_headers(
    foreign: Foreign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    extra = ("--temperature", 0, "--top-p", 0.5, "--top-k", 7, "--extra-body", '{"user": "me"}')
    where = ("--endpoint", "/other/v1/completions", "--header", "X-Team=blue")
    measured(foreign, tmp_path, *extra, *where, "--model", "mine", "--no-ignore-eos")
    body, headers = foreign.bodies[0], foreign.headers[0]
    assert {key: body[key] for key in ("temperature", "top_p", "top_k", "user", "model")} == {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 7,
        "user": "me",
        "model": "mine",
    }
    assert "ignore_eos" not in body
    assert foreign.paths[0] == "/other/v1/completions"
    assert headers["authorization"] == "Bearer secret"
    assert headers["x-team"] == "blue"


def test_chats(foreign: Foreign, tmp_path: Path) -> None:
    foreign.first_s = 0.1
    found = measured(foreign, tmp_path, "--backend", "openai-chat")
    body = foreign.bodies[0]
    assert foreign.paths[0] == "/v1/chat/completions"
    assert body["max_completion_tokens"] == 5
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert len(body["messages"][0]["content"].split()) == 40
    assert found["median_ttft_ms"] >= 100  # the chunk that only names the role is no token


def test_prompts_of_text(foreign: Foreign, tmp_path: Path) -> None:
    measured(foreign, tmp_path, "--prompts", "text")
    assert len(foreign.bodies[0]["prompt"].split(" ")) == 40


def test_rates(foreign: Foreign, tmp_path: Path) -> None:
    regular = ("--request-rate", 20, "--burstiness", "inf")
    found = measured(foreign, tmp_path, *regular)
    due_s = [0.05 * number for number in range(1, 7)]
    assert all(sent >= due for sent, due in zip(found["start_times"], due_s, strict=True))
    assert found["request_rate"] == 20
    assert found["burstiness"] == "inf"
    assert measured(foreign, tmp_path)["request_rate"] == "inf"


def test_ramps(foreign: Foreign, tmp_path: Path) -> None:
    ramp = ("--ramp-up-start-rps", 10, "--ramp-up-end-rps", 100, "--burstiness", "inf")
    found = measured(foreign, tmp_path, "--ramp-up-strategy", "linear", *ramp)
    due_s = Arrivals(10, 0, 100).times_s(6, 0)
    assert all(sent >= due for sent, due in zip(found["start_times"], due_s, strict=True))
    assert found["ramp_up_end_rps"] == 100
    assert run(foreign, *ramp).exit_code == 2
    both = run(foreign, "--ramp-up-strategy", "linear", "--request-rate", 3)
    assert both.exit_code == 2


def test_concurrency(foreign: Foreign, tmp_path: Path) -> None:
    waits = ("--percentile-metrics", "e2el,client_queue_time")
    found = measured(foreign, tmp_path, "--max-concurrency", 2, *waits)
    assert foreign.most_in_work <= 2 == found["max_concurrent_requests"]
    assert found["mean_client_queue_time_ms"] > 10
    assert "mean_ttft_ms" not in found
    assert foreign.connections <= 3  # they are used again


def test_goals(foreign: Foreign, tmp_path: Path) -> None:
    found = measured(foreign, tmp_path, "--goodput", "ttft:10000", "tpot:10000")
    assert found["request_goodput"] == found["request_throughput"]
    found = measured(foreign, tmp_path, "--goodput", "e2el:1,ttft:10000")
    assert found["request_goodput"] == 0
    assert run(foreign, "--goodput", "tbt:5").exit_code == 1
    assert run(foreign, "ttft:5").exit_code == 2


def test_warm_ups_are_not_measured(foreign: Foreign, tmp_path: Path) -> None:
    found = measured(foreign, tmp_path, "--num-warmups", 3)
    assert len(foreign.bodies) == 9
    assert found["completed"] == 6
    foreign.bad_tokens = 40
    result = run(foreign, *SMALL, "--num-warmups", 1)
    assert result.exit_code == 1
    assert "too long for me" in result.output


def test_errors_are_counted_and_shown(foreign: Foreign, tmp_path: Path) -> None:
    rows = [{"prompt": "a" * size} for size in (4, 5, 4)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    foreign.bad_tokens = 5
    custom = ("--dataset-name", "custom", "--dataset-path", path)
    found = measured(foreign, tmp_path, *custom)
    assert (found["completed"], found["failed"]) == (2, 1)
    assert found["error_counts"] == {"status 400: too long for me": 1}
    result = run(foreign, *custom)
    assert "1 request failed: status 400: too long for me" in result.output
    foreign.bad_tokens = 4
    assert run(foreign, *custom).exit_code == 0  # one of three was answered
    foreign.late_error = "no memory"
    everything = run(foreign, *custom, "--output-len", 5)
    assert everything.exit_code == 1
    assert "1 request failed: no memory" in everything.output


@pytest.mark.parametrize("framing", ["chunked", "until closed"])
def test_a_connection_that_breaks(foreign: Foreign, framing: str) -> None:
    foreign.framing = framing
    assert run(foreign, *SMALL).exit_code == 0
    foreign.breaks_after = 0
    result = run(foreign, *SMALL)
    assert result.exit_code == 1
    assert "6 requests failed" in result.output


def test_servers_that_say_less(foreign: Foreign, tmp_path: Path) -> None:
    foreign.has_usage = False
    foreign.lists_models = False
    assert "give --model" in run(foreign, *SMALL).output
    found = measured(foreign, tmp_path, "--model", "m")
    assert found["total_output_tokens"] == 30  # by its chunks
    assert found["total_input_tokens"] == 240
    foreign.is_streaming = False
    result = run(foreign, *SMALL, "--model", "m")
    assert result.exit_code == 1
    assert "no stream" in result.output


def test_a_server_that_closes_connections(foreign: Foreign, tmp_path: Path) -> None:
    foreign.keeps = False
    assert measured(foreign, tmp_path, "--max-concurrency", 1)["completed"] == 6


def test_no_server() -> None:
    result = run(None, "--port", 1)
    assert result.exit_code == 1
    assert "http://127.0.0.1:1 does not answer" in result.output
    assert run(None, "--base-url", "localhost").exit_code == 1
    assert "tcp://" in run(None, "--backend", "sps2", "--base-url", "http://x").output


def test_a_server_that_comes_up_later() -> None:
    port = ports.free_base()
    found = []
    where = ("--host", "localhost", "--port", port, "--ready-check-timeout-sec", 60)
    waiting = threading.Thread(target=lambda: found.append(run(None, *where, *SMALL)))
    waiting.start()
    with serving(Foreign(), port=port):
        waiting.join()
    assert found[0].exit_code == 0, found[0].output


def test_certificates(tmp_path: Path) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    with serving(Foreign(first_s=0.01, gap_s=0.001), tls) as server:
        refused = run(server, *SMALL)
        assert refused.exit_code == 1
        assert "certificate" in refused.output
        assert measured(server, tmp_path, "--insecure")["completed"] == 6


@pytest.mark.parametrize(
    "flags",
    [
        ("--percentile-metrics", "ttft,tbt"),
        ("--metric-percentiles", "50,101"),
        ("--metric-percentiles", "x"),
        ("--burstiness", 0),
        ("--request-rate", 0),
        ("--extra-body", "[1]"),
        ("--header", "novalue"),
        ("--metadata", "novalue"),
        ("--max-concurrency", 0),
    ],
)
def test_wrong_flags(flags: tuple[object, ...]) -> None:
    assert run(None, *flags).exit_code == 2


def test_result_files(foreign: Foreign, tmp_path: Path) -> None:
    more = ("--metadata", "tp=2", "--label", "mine", "--append-result", "--result-dir", tmp_path)
    for _ in range(2):
        assert run(foreign, *SMALL, *more, "--result-filename", "all.json").exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "all.json").read_text().splitlines()]
    assert [row["tp"] for row in rows] == ["2", "2"]
    assert rows[0]["label"] == "mine"
    assert "itls" not in rows[0]
    limits = ("--save-result", "--max-concurrency", 2)
    result = run(foreign, *SMALL, *limits, "--result-dir", tmp_path / "new")
    (made,) = (tmp_path / "new").iterdir()
    assert made.name.startswith("openai-infqps-concurrency2-foreign-")
    assert str(made) in result.output.replace("\n", "")


def test_plots(foreign: Foreign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "out" / "run.png"
    foreign.bad_tokens = 41
    assert run(foreign, *SMALL, "--plot", picture, "--random-range-ratio", 0.05).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("sps2.cli.bench.serve.command.find_spec", lambda name: None)
    assert "sps2[bench]" in run(foreign, "--plot", picture).output


def test_the_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def list_models(self: Acted, request: ListModels) -> Models:
        return Models(data=[Model(id="tiny", created=1, max_model_len=9)])

    monkeypatch.setattr(Acted, "list_models", list_models, raising=False)
    where = ("--config", tmp_path / "cluster.toml", "--num-prompts", 2, "--random-input-len", 8)
    saved = ("--save-result", "--result-dir", tmp_path, "--result-filename", "r.json")
    with acted(tmp_path, "one") as gateway:
        for backend, tokens in (("sps2", 6), ("sps2-chat", 6)):
            result = run(None, "--backend", backend, *where, *saved, "--temperature", 0)
            assert result.exit_code == 0, result.output
            found = json.loads((tmp_path / "r.json").read_text())
            assert found["total_output_tokens"] == tokens
            assert found["model_id"] == "tiny"
    assert [len(request.prompt) for request in gateway.completed] == [8, 8]
    assert {request.temperature for request in gateway.asked} == {0}
    assert run(None, "--backend", "sps2", "--name", "none").exit_code == 1


def test_ctrl_c_shows_what_was_measured(foreign: Foreign, tmp_path: Path) -> None:
    code = (
        "import typer; from sps2.cli.bench.serve.command import serve; "
        "app = typer.Typer(); app.command()(serve); app()"
    )
    rate = ("--request-rate", "20", "--save-result", "--result-filename", "r.json")
    command = [sys.executable, "-c", code, "--base-url", foreign.url, *map(str, SMALL), *rate]
    command += ["--num-prompts", "10000"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    asyncio.run(until(lambda: len(foreign.bodies) > 5))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "interrupted: the figures are of the requests that had ended" in err
    assert "completed requests" in out
    found = json.loads((tmp_path / "r.json").read_text())
    assert 5 < found["completed"] + found["unfinished"] < 10_000
    assert found["failed"] == 0


def test_progress(foreign: Foreign, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = StringIO()
    console = Console(file=drawn, force_terminal=True, width=120)
    monkeypatch.setattr("sps2.cli.render.err", console)
    assert run(foreign, *SMALL, "--request-rate", 10).exit_code == 0
    assert "in work" in drawn.getvalue()
    assert "0/6" in drawn.getvalue()
    drawn.truncate(0)
    for flag in ("--no-progress", "--disable-tqdm"):
        assert run(foreign, *SMALL, flag).exit_code == 0
    assert "in work" not in drawn.getvalue()
