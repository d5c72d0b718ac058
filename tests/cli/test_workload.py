"""Workloads: traces of every format, broken ones, distributions, and the times of requests."""

import gzip
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sps2.cli.workload.recordings import write_workload
from sps2.cli.workload.requests import Turn, Workload
from sps2.cli.workload.sources import find
from sps2.common.errors import Invalid

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:05.0319600,3180,0
2023-11-16 18:17:04.4799600,110,27
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01.009930+00:00,2399,6
"""
SARATHI = """num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio
7564.0,192.0,7756.0,39.39
74,918,992,0.08
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def made(text: str, name: str = "trace.csv") -> str:
        path = tmp_path / name
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text)
        return str(path)

    return made


Write = Callable[..., str]


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def mooncake(at_ms: float, prompt: int, answer: int, *ids: int) -> dict[str, object]:
    return {
        "timestamp": at_ms,
        "input_length": prompt,
        "output_length": answer,
        "hash_ids": list(ids),
    }


AGENT = {
    "id": "one",
    "rows": [[0.0, 2048, 2048, 50, 0], [9.0, 2600, 552, 20, 4.5], [30.0, 1600, 1600, 7, 1.0]],
}


def test_azure(write: Write) -> None:
    workload = find(write(AZURE))
    assert [(turn.prompt_tokens, turn.answer_tokens) for turn in workload.turns] == [
        (4808, 10),
        (110, 27),
        (3180, 1),  # an answer of 0 tokens counts as 1, and rows are sorted by time
    ]
    assert [turn.at_s for turn in workload.turns] == pytest.approx([0, 0.5, 1.052], abs=1e-5)
    assert [turn.at_s for turn in find(write(AZURE_2024)).turns] == pytest.approx([0, 1])
    assert find(write(AZURE, "trace.csv.gz")).turns == workload.turns


def test_sarathi_has_no_times(write: Write) -> None:
    path = write(SARATHI)
    assert [(t.prompt_tokens, t.answer_tokens) for t in find(path).turns] == [
        (7564, 192),
        (74, 918),
    ]
    slow, fast = find(path, rate=0.5).turns, find(path, rate=5.0).turns
    assert slow[1].at_s == pytest.approx(10 * fast[1].at_s) != 0
    assert find(path, seed=1).turns != find(path, seed=2).turns


def test_mooncake(write: Write) -> None:
    rows = lines(mooncake(0, 600, 5, 1, 2), mooncake(1500, 1300, 7, 1, 3, 4))
    workload = find(write(rows, "trace.jsonl"))
    assert workload.block_tokens == 512
    assert workload.turns == [Turn(0.0, 600, 5, (1, 2)), Turn(1.5, 1300, 7, (1, 3, 4))]


def test_agents_share_their_own_prompts(write: Write) -> None:
    path = write(lines(AGENT, AGENT | {"id": "two"}), "agents.jsonl.gz")
    workload = find(path, rate=0.01)
    first, second = (
        [turn for turn in workload.turns if turn.session == name] for name in ("one", "two")
    )
    assert [turn.think_s for turn in first] == [None, 4.5, 1.0]
    assert [len(turn.blocks) for turn in first] == [4, 6, 4]
    assert first[1].blocks[:4] == first[0].blocks
    assert not set(first[2].blocks) & set(first[1].blocks)
    assert not {b for turn in first for b in turn.blocks} & {b for t in second for b in t.blocks}
    assert first[1].at_s == 9.0
    assert second[0].at_s > 9


def test_recordings_come_back_as_they_were(tmp_path: Path) -> None:
    turns = [Turn(0.0, 90, 3, (5, 6), "a"), Turn(1.5, 100, 4, (5, 7), "a", 0.5), Turn(2.0, 9, 1)]
    workload = Workload("mine", turns, 64)
    write_workload(workload, tmp_path / "mine.jsonl")
    assert find(str(tmp_path / "mine.jsonl")) == workload
    plain = tmp_path / "plain.jsonl"
    plain.write_bytes(b"".join(msgspec.json.encode(turn) + b"\n" for turn in turns[2:]))
    assert find(str(plain)).turns == [Turn(0.0, 9, 1)]


RECORDED = {"at_s": 1.0, "prompt_tokens": 600, "answer_tokens": 2}


@pytest.mark.parametrize(
    ("text", "name", "row", "problem"),
    [
        (AZURE + "2023-11-16 18:17:06,-3,10\n", "t.csv", 5, "a prompt of -3 tokens"),
        (AZURE + "2023-11-16 18:17:06,0,10\n", "t.csv", 5, "a prompt of 0 tokens"),
        (AZURE + "2023-11-16 18:17:06,nan,10\n", "t.csv", 5, "a prompt of nan tokens"),
        (AZURE + "2023-11-16 18:17:06,inf,10\n", "t.csv", 5, "a prompt of inf tokens"),
        (AZURE + "2023-11-16 18:17:06,1.5,10\n", "t.csv", 5, "a prompt of 1.5 tokens"),
        (AZURE + "2023-11-16 18:17:06,many,10\n", "t.csv", 5, "'many' is no number"),
        (AZURE + "2023-11-16 18:17:06,3,-1\n", "t.csv", 5, "an answer of -1 tokens"),
        (AZURE + "yesterday,3,1\n", "t.csv", 5, "'yesterday' is no time"),
        (AZURE + "2023-11-16 18:17:06,3\n", "t.csv", 5, "only 2 columns"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "t.csv", 1, "no column GeneratedTokens"),
        ("a,b\n1,2\n", "t.csv", 1, "no column"),
        (SARATHI + "x,1,2,3\n", "t.csv", 4, "'x' is no number"),
        (lines(mooncake(0, 600, 1, 1)), "t.jsonl", 1, "1 hash_ids; 600 tokens are 2 blocks"),
        (lines(mooncake(0, 9, 1, 1), mooncake(-5, 9, 1, 1)), "t.jsonl", 2, "a time of -0.005 s"),
        (lines(mooncake(0, 9, 1, 1)) + "{not json\n", "t.jsonl", 2, ""),
        (lines(mooncake(0, 9, 1, 1), {"timestamp": 1}), "t.jsonl", 2, "input_length"),
        (lines({"timestamp": "soon", "input_length": 1, "hash_ids": []}), "t.jsonl", 1, "float"),
        (lines(AGENT, AGENT), "t.jsonl", 2, "'one' is in row 1 too"),
        (lines({"id": "x", "rows": [[0, 5, 6, 1, 0]]}), "t.jsonl", 1, "6 new tokens of a prompt"),
        (
            lines({"id": "x", "rows": [[5, 5, 5, 1, 0], [4, 5, 1, 1, 0]]}),
            "t.jsonl",
            1,
            "a turn at 4",
        ),
        (lines({"id": "x", "rows": [[0, 5, 5, 1, 0], [4, 0, 0, 1, 0]]}), "t.jsonl", 1, "turn 2: "),
        (lines({"id": "x", "rows": [[0, 5, 5, 1, 0], [4, 5, 1, 1, -1]]}), "t.jsonl", 1, "pause"),
        (lines({"id": "x", "rows": []}), "t.jsonl", 1, "without rows"),
        (lines({"id": "x", "rows": [[0, 5]]}), "t.jsonl", 1, "length 5"),
        (lines(RECORDED, RECORDED | {"prompt_tokens": 0}), "t.jsonl", 2, "a prompt of 0"),
        (lines(RECORDED, RECORDED | {"at_s": -1}), "t.jsonl", 2, "a time of -1 s"),
        (lines(RECORDED, RECORDED | {"blocks": [1]}), "t.jsonl", 2, "1 blocks; 600 tokens are 2"),
        (lines(RECORDED, RECORDED | {"think_s": 1}), "t.jsonl", 2, "think_s without a session"),
        (lines({"workload": "w", "block_tokens": 0}, RECORDED), "t.jsonl", 1, "blocks of 0"),
        (lines({"some": "thing"}), "t.jsonl", 1, "JSON of no known trace"),
    ],
)
def test_a_broken_row_is_named(write: Write, text: str, name: str, row: int, problem: str) -> None:
    path = write(text, name)
    with pytest.raises(Invalid) as raised:
        find(path)
    assert str(raised.value).startswith(f"{path}, row {row}: ")
    assert problem in str(raised.value)


def test_files_that_are_no_traces(write: Write, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="is empty"):
        find(write(""))
    with pytest.raises(Invalid, match="no request is left"):
        find(write(AZURE.splitlines()[0] + "\n"))
    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(b"not gzip")
    with pytest.raises(Invalid, match="no intact gzip file"):
        find(str(packed))
    packed.write_bytes(gzip.compress(lines(AGENT).encode())[:-20])
    with pytest.raises(Invalid, match="no intact gzip file"):
        find(str(packed))
    binary = tmp_path / "t.csv"
    binary.write_bytes(AZURE.encode() + b"\xff\xfe")
    with pytest.raises(Invalid, match="no text in UTF-8"):
        find(str(binary))
    with pytest.raises(Invalid, match="azure-conv"):
        find("no-such-thing")


def test_shapes(write: Write) -> None:
    path = write(AZURE)
    assert len(find(path, limit=2).turns) == 2
    assert [turn.prompt_tokens for turn in find(path, span_s=0.6).turns] == [4808, 110]
    assert [turn.prompt_tokens for turn in find(path, longest=4000).turns] == [110, 3180]
    small = find(path, scale=1 / 16)
    assert [turn.prompt_tokens for turn in small.turns] == [300, 7, 199]
    assert [turn.answer_tokens for turn in small.turns] == [1, 2, 1]
    for wrong in ({"scale": 0.0}, {"limit": 0}, {"span_s": -1.0}, {"longest": 0}, {"rate": 0.0}):
        with pytest.raises(Invalid):
            find(path, **wrong)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="no request is left"):
        find(path, longest=5)


def test_scaled_blocks_share_as_much(write: Write) -> None:
    rows = lines(mooncake(0, 513, 5, 1, 2), mooncake(1500, 1300, 7, 1, 3, 4))
    path = write(rows, "trace.jsonl")
    small = find(path, scale=1 / 16)
    assert small.block_tokens == 32
    assert [turn.blocks for turn in small.turns] == [(1, 2), (1, 3, 4)]
    assert [turn.prompt_tokens for turn in small.turns] == [33, 81]
    with pytest.raises(Invalid, match="leave blocks of 1 token"):
        find(path, scale=1 / 512)


def test_a_session_ends_before_a_turn_that_is_too_long(write: Write) -> None:
    path = write(lines(AGENT), "agents.jsonl")
    assert [turn.prompt_tokens for turn in find(path, longest=2100).turns] == [2048]
    assert [turn.think_s for turn in find(path, longest_think_s=2).turns] == [None, 2, 1]


def test_some_sessions_are_whole(write: Write) -> None:
    path = write(lines(*(AGENT | {"id": each} for each in "abc")), "agents.jsonl")
    kept = find(path, sessions=2, rate=math.inf, limit=5).turns
    assert Counter(turn.session for turn in kept) == {"a": 3, "b": 2}
    assert len(find(write(AZURE), sessions=2).turns) == 2
    with pytest.raises(Invalid, match="number of sessions"):
        find(path, sessions=0)


def test_pauses_are_scaled_and_then_cut(write: Write) -> None:
    path = write(lines(AGENT), "agents.jsonl")

    def pauses(**shape: float) -> list[float | None]:
        return [turn.think_s for turn in find(path, **shape).turns]  # type: ignore[arg-type]

    assert pauses(think_scale=0.5) == [None, 2.25, 0.5]
    assert pauses(think_scale=0) == [None, 0, 0]
    assert pauses(think_scale=4, longest_think_s=5) == [None, 5, 4]
    with pytest.raises(Invalid, match="pauses times -1"):
        pauses(think_scale=-1)


def test_the_rate_of_a_trace(write: Write) -> None:
    path = write(AZURE)
    own, fast = find(path).turns, find(path, rate=6.0).turns
    assert fast[-1].at_s == pytest.approx(0.5)  # 3 requests at 6 per second
    assert fast[1].at_s / fast[2].at_s == pytest.approx(own[1].at_s / own[2].at_s)
    assert [turn.at_s for turn in find(path, rate=math.inf).turns] == [0, 0, 0]
    regular = find(path, rate=2.0, cv=0.0).turns
    assert [turn.at_s for turn in regular] == pytest.approx([0, 0.5, 1])
    ramp = find(path, rate=1.0, cv=0.0, last_rate=4.0, strategy="exponential").turns
    assert [turn.at_s for turn in ramp] == pytest.approx([0, 0.5, 0.75])


def test_a_session_moves_as_a_whole(tmp_path: Path) -> None:
    turns = [Turn(0.0, 5, 1, (), "a"), Turn(1.0, 5, 1), Turn(3.0, 5, 1, (), "a", 0.5)]
    path = tmp_path / "mine.jsonl"
    write_workload(Workload("mine", turns), path)
    drawn = find(str(path), rate=0.1, cv=0.0).turns
    assert [(turn.session, turn.at_s) for turn in drawn] == [("a", 0.0), ("a", 3.0), ("", 10.0)]
    assert [turn.at_s for turn in find(str(path), rate=0.1).turns] == [0, 20, 60]


def test_a_long_trace_is_read_in_no_time(write: Write) -> None:
    rows = "".join(
        json.dumps(mooncake(10 * n, 512 * 14, 300, *range(n, n + 14))) + "\n" for n in range(12_000)
    )
    path = write(rows, "long.jsonl")
    used = time.process_time()
    assert len(find(path).turns) == 12_000
    assert time.process_time() - used < 1.0


@given(
    st.lists(
        st.tuples(st.integers(0, 10**7), st.integers(1, 10**6), st.integers(0, 10**5)), min_size=1
    ),
    st.randoms(use_true_random=False),
)
def test_whatever_a_table_has_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, int, int]],
    draw: random.Random,
) -> None:
    path = tmp_path_factory.mktemp("traces") / "t.jsonl"
    path.write_text(lines(*(mooncake(at, prompt, answer) for at, prompt, answer in rows)))
    turns = find(str(path)).turns
    start = min(at for at, *_ in rows)
    wanted = sorted(((at - start) / 1000, prompt, max(1, answer)) for at, prompt, answer in rows)
    found = sorted((turn.at_s, turn.prompt_tokens, turn.answer_tokens) for turn in turns)
    for turn, expected in zip(found, wanted, strict=True):
        assert turn == pytest.approx(expected)
    limit = draw.randint(1, len(rows))
    assert len(find(str(path), limit=limit).turns) == limit


@given(st.binary(max_size=300))
def test_rubbish_is_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    for name in ("t.csv", "t.jsonl", "t.jsonl.gz"):
        path = tmp_path_factory.mktemp("rubbish") / name
        path.write_bytes(data)
        with pytest.raises(Invalid):
            find(str(path))


@given(
    st.lists(
        st.sampled_from(
            ["", "x", "-1", "nan", "1e999", "3", "2023-11-16 18:17:03", "{}", '"', "[]", "null"]
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["TIMESTAMP,ContextTokens,GeneratedTokens", "", '{"hash_ids": [], "rows": 1}']),
)
def test_no_row_raises_anything_but_invalid(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str], head: str
) -> None:
    path = tmp_path_factory.mktemp("odd") / "t"
    path.write_text(f"{head}\n{','.join(cells)}\n")
    with suppress(Invalid):
        assert find(str(path)).turns


@pytest.mark.parametrize(
    "start",
    [
        '{"timestamp": 1, "input_length": 1, "x": ',
        '{"at_s": 1, "x": ',
        '{"workload": "a", "x": ',
        '{"id": "a", "rows": ',
    ],
)
def test_a_row_that_nests_too_deeply_is_named(write: Write, start: str) -> None:
    with pytest.raises(Invalid, match="row 1: "):
        find(write(start + "[" * 20_000 + "\n", "trace.jsonl"))
