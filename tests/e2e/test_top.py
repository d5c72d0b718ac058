"""`spsctl top` in terminals of two sizes, beside a real cluster under load."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from sps2.common.client import Client
from sps2.common.errors import PeerLost

from ..terminal import terminal
from .conftest import Launch, Running

SHARDS = ("prefill-0", "prefill-1", "decode-0", "decode-1")
TOP = [sys.executable, "-m", "sps2.cli.main", "top"]


@pytest.fixture(scope="module")
def loaded(launch: Launch) -> Iterator[Running]:
    """A cluster that answers one long request after another, three at a time."""
    with launch("smollm2", "tcp") as running, load(running):
        yield running


@contextmanager
def load(cluster: Running) -> Iterator[None]:
    ended = threading.Event()

    def work(client: Client, number: int) -> None:
        for round_ in count():
            if ended.is_set():
                return
            with suppress(PeerLost):  # a machine that pauses is not what is tested
                client.complete(
                    [7 + number] * 200,
                    max_tokens=250,
                    temperature=0,
                    ignore_eos=True,
                    cache_salt=f"{number}-{round_}",
                    sps2={"method": "ring"},  # type: ignore[typeddict-item]
                )

    with Client(cluster.bus) as client:
        workers = [threading.Thread(target=work, args=(client, number)) for number in range(3)]
        for each in workers:
            each.start()
        yield
        ended.set()
        for each in workers:
            each.join()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
def test_what_the_screen_shows(loaded: Running, width: int, height: int) -> None:
    def all_known(rows: list[str]) -> bool:
        text = "\n".join(rows)
        values = rows[2].split()
        return (
            len(values) == 10
            and "-" not in values
            and all(f" {shard} " in text for shard in SHARDS)
            and "decode " in text
            and "/250" in text
        )

    def row_of(rows: list[str], what: str) -> int:
        return next((index for index, row in enumerate(rows) if what in row), len(rows))

    def in_place(rows: list[str]) -> bool:
        first = {row.split()[0]: row for row in reversed(rows) if row.lstrip().startswith(SHARDS)}
        shards = list(first.values())
        matrix = rows[row_of(rows, "FROM→TO") + 1 :][:4]
        stages = [row for row in rows[row_of(rows, "REQUEST") + 1 :] if "━" in row]
        return (
            rows[0].split()[:2] == ["spsctl", "top"]
            and "ready" in rows[0]
            and "q quit" in rows[-1]
            and len(shards) == len(SHARDS)
            and all("%" in row and ("busy" in row or "ready" in row) for row in shards)
            and any("·" in row or "k" in row for row in matrix)
            and len(stages) >= 2
            and any("decode-" in row for row in stages)
        )

    with terminal(TOP, width, height) as screen:
        screen.until(
            lambda rows: all_known(rows) and in_place(rows), "all numbers, each in its place"
        )
        screen.press("\r")
        screen.until(
            lambda rows: all(
                what in "\n".join(rows) for what in ("OF ALL", "prompt       200 tokens")
            ),
            "the detail",
        )
        screen.press("q")
        assert screen.wait() == 0


def test_once_for_scripts(loaded: Running) -> None:
    found = until_it_decodes()
    assert {each["service"] for each in found["services"]} == {
        "gateway",
        "scheduler",
        "kvdir",
        *SHARDS,
    }
    shards = {each["id"]: each for each in found["shards"]}
    assert set(shards) == {*SHARDS}
    assert all(0 <= each["busy"] <= 1 for each in shards.values())
    keepers = [shards[name] for name in SHARDS[2:]]
    assert all(each["pages"] >= each["pages_free"] >= 0 < each["pages"] for each in keepers)
    between = {(each["source"], each["target"]) for each in found["links"]}
    assert {("prefill-0", "prefill-1"), ("prefill-1", "prefill-0")} <= between
    assert all(each["sent_bytes"] > 0 for each in found["links"])


def until_it_decodes() -> dict[str, Any]:
    """What the command tells once a request of the load has tokens."""
    deadline_s = time.monotonic() + 120
    while True:
        done = subprocess.run([*TOP, "--once", "--json"], capture_output=True, text=True)
        found: dict[str, Any] = json.loads(done.stdout)
        decoding = any(each["stage"] == "decode" and each["tokens"] for each in found["requests"])
        owned = sum(each["owned"] or 0 for each in found["shards"])
        there = all(each["state"] in ("ready", "busy") for each in found["shards"])
        if decoding and owned and there and found["cluster"]["tokens_out_s"] > 0:
            return found
        assert time.monotonic() < deadline_s, found


def test_progress_of_a_real_prefill(loaded: Running) -> None:
    with Client(loaded.bus) as client:
        chunks = list(client.complete_stream([9] * 300, max_tokens=2, sps2={"progress": True}))  # type: ignore[typeddict-item]
        computed = sum(
            each.counters.get("prefill_tokens", 0.0) for each in client.status().services
        )
    assert computed >= 300, "every layer of every token is counted"
    told = [each.sps2.progress for each in chunks if each.sps2]
    assert told
    assert (told[0].processed, told[0].total, told[0].cached) == (0, 300, 0)
    assert [each.processed for each in told] == sorted(each.processed for each in told)


def test_what_a_person_sees_while_a_prompt_is_read(loaded: Running, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("word " * 80)
    command = [sys.executable, "-m", "sps2.cli.main", "complete", "-n", "3", "-f", str(file)]
    with terminal(command, cwd=tmp_path) as screen:
        assert screen.wait() == 0
        assert b"reading" in screen.raw
        assert not any("reading" in row for row in screen.rows), "it goes when the answer comes"
    plain = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert plain.returncode == 0
    assert "reading" not in plain.stdout + plain.stderr
