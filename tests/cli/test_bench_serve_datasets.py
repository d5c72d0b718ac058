"""The datasets of `spsctl bench serve`, as a server receives them."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sps2.common.text.tokens import Tokenizer

from .bench_serving import measured, run
from .foreign import Foreign


def test_traces(foreign: Foreign, tmp_path: Path) -> None:
    rows = [
        {"timestamp": 200 * n, "input_length": 1024, "output_length": 3, "hash_ids": [7, 8 + n % 2]}
        for n in range(4)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trace = ("--dataset-name", "trace", "--dataset-path", path)
    found = measured(foreign, tmp_path, *trace, "--length-scale", 0.125)
    prompts = [body["prompt"] for body in foreign.bodies]
    assert [len(prompt) for prompt in prompts] == [128] * 4
    assert prompts[0] == prompts[2] != prompts[1] == prompts[3]
    assert prompts[0][:64] == prompts[1][:64]  # the same block
    assert [int(5.01 * at_s) for at_s in found["start_times"]] >= [0, 1, 2, 3]
    assert found["dataset"] == "trace.jsonl"
    found = measured(foreign, tmp_path, *trace, "--no-self-timed")
    assert found["max_concurrent_requests"] == 4  # all at once
    few = ("--num-prompts", 3, "--time-span", 0.3)
    assert run(foreign, *trace, *few).exit_code == 0
    assert len(foreign.bodies) == 4 + 4 + 2
    assert "no request is left" in run(foreign, *trace, "--longest-prompt", 100).output
    assert "has lengths of its own" in run(foreign, *trace, "--output-len", 3).output
    assert "needs --dataset-path" in run(foreign, "--dataset-name", "trace").output


def test_distributions(foreign: Foreign, tmp_path: Path) -> None:
    small = ("--length-scale", 0.01, "--num-prompts", 8)
    for name in ("azure-code", "fixed:900,300"):
        result = run(foreign, "--dataset-name", name, *small)
        assert result.exit_code == 0, result.output
    assert {len(body["prompt"]) for body in foreign.bodies[8:]} == {9}


def test_sessions_wait_for_answers(foreign: Foreign, tmp_path: Path) -> None:
    rows = [[0.0, 1024, 1024, 3, 0], [5.0, 1536, 512, 3, 0.2], [9.0, 1600, 64, 3, 600.0]]
    path = tmp_path / "agents.jsonl"
    path.write_text(json.dumps({"id": "a", "rows": rows}) + "\n")
    trace = ("--dataset-name", "trace", "--dataset-path", path, "--longest-think-time", 0.3)
    result = run(foreign, *trace, "--length-scale", 0.125)
    assert result.exit_code == 0, result.output
    first, second, third = (body["prompt"] for body in foreign.bodies)
    assert second[:128] == first
    assert third[:192] == second
    gaps = [after - before for before, after in itertools.pairwise(foreign.at_s)]
    assert gaps[0] >= 0.2
    assert gaps[1] >= 0.3


def test_agents_of_a_file(foreign: Foreign, tmp_path: Path) -> None:
    first = [[0.0, 1024, 1024, 3, 0], [5.0, 1536, 512, 3, 600.0], [9.0, 1600, 64, 3, 600.0]]
    second = [[0.0, 512, 512, 3, 0], [5.0, 1024, 512, 3, 600.0]]
    path = tmp_path / "agents.jsonl"
    path.write_text(
        "".join(json.dumps({"id": str(n), "rows": r}) + "\n" for n, r in enumerate((first, second)))
    )
    agents = ("--dataset-name", "agents", "--dataset-path", path, "--length-scale", 0.0625)
    found = measured(foreign, tmp_path, *agents, "--think-scale", 0.0001)
    assert found["completed"] == 5
    prompts = sorted((body["prompt"] for body in foreign.bodies), key=len)
    assert [len(prompt) for prompt in prompts] == [32, 64, 64, 96, 100]
    short, *both, middle, long = prompts
    begun = [prompt for prompt in both if prompt[:32] == short]
    assert len(begun) == 1, "the second session goes on"
    assert long[:96] == middle
    assert middle[:64] in both
    rows = [{"timestamp": 0, "input_length": 512, "output_length": 3, "hash_ids": [7]}]
    path.write_text(json.dumps(rows[0]) + "\n")
    assert "has no sessions" in run(foreign, *agents).output


def test_agents_that_are_drawn(foreign: Foreign, tmp_path: Path) -> None:
    small = ("--length-scale", 0.01, "--num-prompts", 12, "--think-scale", 0)
    agents = (*small, "--dataset-name", "agents", "--num-sessions", 2)
    assert measured(foreign, tmp_path, *agents)["completed"] == 12
    beginnings = {tuple(body["prompt"][:50]) for body in foreign.bodies}
    assert len(beginnings) == 2


CHAT = [
    {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "one"}]},
    {
        "conversations": [
            {"from": "human", "value": "first question"},
            {"from": "gpt", "value": "an answer of some length"},
            {"from": "human", "value": "second question"},
        ]
    },
    {"conversations": [{"from": "gpt", "value": "no question"}]},
]


@pytest.mark.parametrize("is_list", [True, False])
def test_conversations_have_the_answers_of_the_server(
    foreign: Foreign, tmp_path: Path, is_list: bool
) -> None:
    path = tmp_path / "chats.json"
    text = json.dumps(CHAT) if is_list else "".join(json.dumps(row) + "\n" for row in CHAT)
    path.write_text(text)
    chats = ("--dataset-name", "conversations", "--dataset-path", path, "--output-len", 2)
    thinking = ("--think-time", 0.05, "--backend", "openai-chat")
    result = run(foreign, *chats, *thinking)
    assert result.exit_code == 0, result.output
    said = [[m["content"] for m in body["messages"]] for body in foreign.bodies]
    assert sorted(said, key=len) == [
        ["first question"],
        ["Be kind.", "one"],
        ["first question", " w0 w1", "second question"],
    ]
    assert "ignore_eos" not in foreign.bodies[0]
    assert run(foreign, *chats, "--num-prompts", 2).exit_code == 0
    prompts = [body["prompt"] for body in foreign.bodies[3:]]
    assert "system: Be kind.\nuser: one\nassistant:" in prompts
    assert len(prompts) == 2


def test_a_session_ends_with_a_failure(foreign: Foreign, tmp_path: Path) -> None:
    rows = [[0.0, 1024, 1024, 3, 0], [5.0, 1536, 512, 3, 0.0], [9.0, 1600, 64, 3, 0.0]]
    path = tmp_path / "agents.jsonl"
    path.write_text(json.dumps({"id": "a", "rows": rows}) + "\n")
    foreign.bad_tokens = 1536
    result = run(foreign, "--dataset-name", "trace", "--dataset-path", path)
    assert result.exit_code == 0
    assert "not sent, as a turn before failed" in result.output
    assert len(foreign.bodies) == 2


def test_text(foreign: Foreign, tmp_path: Path) -> None:
    path = tmp_path / "sonnets.txt"
    path.write_text("Shall I compare thee to a summer's day? " * 50)
    text = ("--dataset-name", "text", "--dataset-path", path, "--num-prompts", 3)
    assert run(foreign, *text, "--input-len", 50, "--output-len", 2).exit_code == 0
    assert {len(body["prompt"]) for body in foreign.bodies} == {200}
    assert len({body["prompt"] for body in foreign.bodies}) == 3


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("custom", '{"prompt": "a"}\n{"prompt": 5}\n', "row 2"),
        ("custom", '{"prompt": "a", "output_tokens": 0}\n', "row 1"),
        ("custom", "", "no prompts"),
        ("conversations", "{}\n", "no conversation"),
        ("conversations", "[5]", "Expected `object`"),
        ("conversations", "{\n", "row 1"),
        ("random", "x", "reads no file"),
        ("azure-code", "x", "reads no file"),
        ("text", "", "has no text"),
    ],
)
def test_broken_files(foreign: Foreign, tmp_path: Path, name: str, text: str, problem: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    result = run(foreign, "--dataset-name", name, "--dataset-path", path)
    assert result.exit_code == 1
    assert problem in result.output


def test_random_lengths(foreign: Foreign, tmp_path: Path) -> None:
    shape = ("--random-range-ratio", 0.5, "--random-prefix-len", 8, "--vocab-size", 400)
    measured(foreign, tmp_path, *shape)
    prompts = [body["prompt"] for body in foreign.bodies]
    assert len({tuple(prompt[:8]) for prompt in prompts}) == 1
    assert len({tuple(prompt[:12]) for prompt in prompts}) == 6
    assert all(20 <= len(prompt) - 8 <= 60 for prompt in prompts)
    assert len({len(prompt) for prompt in prompts}) > 1
    assert all(max(prompt) < 400 for prompt in prompts)
    assert len({body["max_tokens"] for body in foreign.bodies}) > 1


def test_a_seed_repeats_the_prompts(foreign: Foreign, tmp_path: Path) -> None:
    for seed in (1, 1, 2):
        measured(foreign, tmp_path, "--seed", seed)
    prompts = [body["prompt"] for body in foreign.bodies]
    assert prompts[:6] == prompts[6:12] != prompts[12:]


def test_a_tokenizer_counts(
    foreign: Foreign, tmp_path: Path, checkpoint: Callable[[str], Path]
) -> None:
    folder = checkpoint("llama3")
    known = Tokenizer(folder)
    small = ("--num-prompts", 3, "--tokenizer", folder)
    text = ("--dataset-name", "text", "--input-len", 30, "--output-len", 2)
    assert run(foreign, *small, *text).exit_code == 0
    assert all(20 < len(known.encode(body["prompt"])) < 40 for body in foreign.bodies)
    assert run(foreign, *small, "--random-input-len", 50).exit_code == 0
    special = set(known.special.values())
    for body in foreign.bodies[3:]:
        assert not special & set(body["prompt"])
        assert max(body["prompt"]) < known.vocab_size
