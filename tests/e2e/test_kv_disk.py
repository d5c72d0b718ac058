"""Real processes: KV on disk outlives memory and restarts, and no fault of it costs an answer."""

import asyncio
import json
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from sps2.cli.launch import ServiceDied
from sps2.common.api import Completion
from sps2.common.client import AsyncClient, Client

from .conftest import Launch, Running
from .test_cluster import prompt_of, released, said
from .test_duties import spsctl
from .test_prefix_cache import PAGE, ask, cached

SLOW = {"gflops": 0.01}
"""Pages of the tiny model are computed faster than a file is opened: predict otherwise."""
FIRST = prompt_of(330)
SECOND = FIRST + [9] * 40
FULL = 330 // PAGE * PAGE

Up = Callable[..., AbstractContextManager[Running]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kv"


@pytest.fixture
def up(launch: Launch, folder: Path) -> Up:
    """Starts a cluster of two mixed shards, or of `more`, with its pages in `folder`."""

    def start(family: str = "smollm2", **more: object) -> AbstractContextManager[Running]:
        kv = {"disk_folder": str(folder)} | dict(more.pop("kv", {}))  # type: ignore[call-overload]
        shards = {} if "prefill" in more else {"mixed": 2}
        return launch(family, "tcp", kv=kv, sharing=SLOW, **shards, **more)

    return start


def turn(running: Running, prompt: list[int], salt: str = "turns") -> Completion:
    with Client(running.bus) as client:
        return ask(client, prompt, cache_salt=salt)


def counters(running: Running) -> dict[str, float]:
    """Those of the disks of all shards."""
    with Client(running.bus) as client:
        found = [each.counters for each in client.status().services]
        assert client.status().leaked_pages == 0
    names = {name for each in found for name in each if name.startswith("kv_disk_")}
    return {name: sum(each.get(name, 0) for each in found) for name in names}


def known(running: Running) -> float:
    """Pages on disk that the directory knows of."""
    with Client(running.bus) as client:
        found = [each.counters for each in client.status().services]
        return sum(each.get("kv_cached_disk_pages", 0) for each in found)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.kv"))


def test_a_second_turn_after_a_restart_reads_the_first(
    up: Up, folder: Path, tmp_path: Path
) -> None:
    with up() as running:
        assert cached(turn(running, FIRST)) == 0
    assert len(files(folder)) == FULL // PAGE
    with up() as running:
        again = turn(running, SECOND)
        assert cached(again) == FULL
        assert counters(running)["kv_disk_hits"] == FULL // PAGE
        assert cached(turn(running, SECOND)) == len(SECOND) // PAGE * PAGE, "in memory now"
        assert counters(running)["kv_disk_hits"] == FULL // PAGE
        cold = turn(running, SECOND, "cold")
        assert (cached(cold), said(cold)) == (0, said(again))
        listed = spsctl("cache", "list").stdout
        rows = [re.split(r"  +", line) for line in listed.splitlines()]
        assert rows[0] == [
            *("SHARD", "IN MEMORY", "HITS", "ON DISK", "SIZE", "PINNED", "HITS", "READ"),
            *("WRITTEN", "FAULTS"),
        ]
        assert {row[0] for row in rows[1:]} == {"mixed-0", "mixed-1"}
        assert sum(int(row[6]) for row in rows[1:]) == FULL // PAGE
        recording = str(tmp_path / "recording")
        assert spsctl("scheduler", "record", recording, "--seconds", "0").returncode == 0
        replayed = spsctl("scheduler", "replay", recording)
        assert "All actions followed again" in replayed.stdout, replayed.stderr


def test_damaged_files_are_left_out_and_counted(up: Up, folder: Path) -> None:
    with up() as running, Client(running.bus) as client:
        wanted = said(ask(client, FIRST, cache_salt="turns", sps2={"sp_degree": 1}))
    by_use = sorted(files(folder), key=lambda file: -file.stat().st_mtime_ns)
    changed, short = by_use[3], by_use[7]  # pages of the prompt: the first was used last
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    short.write_bytes(short.read_bytes()[:1000])
    with up() as running:
        answer = turn(running, FIRST)
        assert said(answer) == wanted
        assert cached(answer) == 3 * PAGE
        found = counters(running)
        assert (found["kv_disk_damaged"], found["kv_disk_unreadable"]) == (2, 0)
        assert cached(turn(running, FIRST)) == FULL
    with up() as running:
        assert cached(turn(running, FIRST)) == FULL, "they were written again"
        assert counters(running)["kv_disk_damaged"] == 0


def test_what_memory_has_no_room_for_comes_from_disk(up: Up) -> None:
    prompts = [[5 + number] * 8 + prompt_of(192) for number in range(8)]
    with up(kv={"pool_tokens": 20 * PAGE}) as running:
        first = [turn(running, prompt) for prompt in prompts]
        while known(running) < 6 * 8:  # shards report what they wrote with their heartbeats
            time.sleep(0.05)
        again = [turn(running, prompt) for prompt in prompts]
        assert [said(answer) for answer in again] == [said(answer) for answer in first]
        assert [cached(answer) for answer in again] == [6 * PAGE] * 8
        assert counters(running)["kv_disk_hits"] > 0
        asyncio.run(crowd(running, prompts, [said(answer) for answer in first]))


async def crowd(running: Running, prompts: list[list[int]], wanted: list[list[str]]) -> None:
    """Many ask at once, and some leave early: nothing is mixed up or lost."""
    async with AsyncClient(running.bus) as client:
        complete = partial(
            client.complete,
            max_tokens=8,
            temperature=0,
            ignore_eos=True,
            logprobs=0,
            cache_salt="turns",
        )
        together = await asyncio.gather(*(complete(prompt) for prompt in prompts * 3))
        assert [said(answer) for answer in together] == wanted * 3
        leaving = [asyncio.create_task(complete(prompt)) for prompt in prompts * 2]
        await asyncio.sleep(0.1)
        for task in leaving:
            task.cancel()
        await asyncio.wait(leaving)
        assert (await released(client)).leaked_pages == 0
        assert said(await complete(prompts[3])) == wanted[3]


def test_processes_of_a_shard_keep_their_heads(up: Up, folder: Path) -> None:
    start = partial(up, "llama3", prefill=1, decode=1, tp=2)
    with start() as running:
        wanted = said(turn(running, FIRST))
    assert len(files(folder)) == 2 * FULL // PAGE
    with start() as running:
        answer = turn(running, FIRST)
        assert (said(answer), cached(answer)) == (wanted, FULL)
    (place,) = folder.glob("*/decode-0.1")
    for file in files(place)[3:5]:
        file.unlink()
    with start() as running:
        for _ in range(2):
            assert said(turn(running, FIRST)) == wanted
        assert cached(turn(running, FIRST)) == FULL
        assert said(turn(running, FIRST)) == wanted
        counters(running)


def test_a_folder_that_cannot_be_used_costs_no_answer(up: Up, folder: Path) -> None:
    folder.write_bytes(b"a file")
    with up() as running:
        assert [cached(turn(running, FIRST)) for _ in range(2)] == [0, FULL]
        assert counters(running) == {"kv_disk_unwritable": 2}


def test_a_bound_is_kept_and_pages_can_be_dropped(up: Up, folder: Path) -> None:
    with up(kv={"disk_gib": 12 * 13904 / 2**30}) as running:  # bytes of a file
        for number in range(6):
            turn(running, FIRST, str(number))
    assert 0 < len(files(folder)) <= 24
    with up() as running:
        assert counters(running)["kv_disk_pages"] == len(files(folder))
        done = spsctl("cache", "drop", "--unused", "1")
        assert done.returncode == 0, done.stderr
        assert counters(running)["kv_disk_pages"] > 0
        turn(running, FIRST, "dropped")
        done = spsctl("cache", "drop")
        assert len(re.findall("^mixed-[01]: [0-9]+ pages? dropped", done.stdout, re.MULTILINE)) == 2
        assert cached(turn(running, FIRST, "dropped")) == 0
        wrong = spsctl("cache", "drop", "--shard", "mixed-7")
        assert "no shard 'mixed-7' keeps KV; these do: mixed-0, mixed-1" in wrong.stderr


def test_pinned_pages_outlive_others(up: Up, folder: Path, tmp_path: Path) -> None:
    def pin(salt: str, command: str = "pin") -> "subprocess.CompletedProcess[str]":
        body = tmp_path / f"{salt}.json"
        body.write_text(json.dumps({"prompt": FIRST, "cache_salt": salt}))
        return spsctl("cache", command, "--json", str(body))

    def pages(done: "subprocess.CompletedProcess[str]", what: str) -> int:
        assert done.returncode == 0, done.stderr
        found = re.findall(f"^mixed-[01]: ([0-9]+) pages? {what}$", done.stdout, re.MULTILINE)
        return sum(map(int, found))

    small = {"disk_gib": 24 * 19_000 / 2**30}  # bytes of a file; half of them may be pinned
    with up(kv=small) as running:
        assert "none of the 10 full pages of this prompt is cached" in pin("turns").stderr
        wanted = said(turn(running, FIRST))
        assert pages(pin("turns"), "pinned") == FULL // PAGE
        for number in range(8):
            turn(running, FIRST, str(number))
        refused = [pin(str(number)) for number in (5, 6, 7)]
        said_so = "\n".join(each.stdout + each.stderr for each in refused)
        assert re.search("pinned pages; it may have [0-9]+, half of its room", said_so), said_so
    with up(kv=small) as running:
        answer = turn(running, FIRST)
        assert (said(answer), cached(answer)) == (wanted, FULL)
        assert counters(running)["kv_disk_pinned"] >= FULL // PAGE
        assert pages(pin("turns", "unpin"), "no longer pinned") == FULL // PAGE
        assert "No page was pinned" in pin("turns", "unpin").stdout
        assert spsctl("cache", "unpin", "--all").returncode == 0
        assert "either FILE or --all" in spsctl("cache", "unpin").stderr
        assert spsctl("cache", "pin", str(tmp_path / "missing")).returncode == 2
    with up() as running:
        assert counters(running)["kv_disk_pinned"] == 0


def test_two_clusters_do_not_share_a_folder(up: Up, folder: Path) -> None:
    with up(), pytest.raises(ServiceDied) as died, up():
        pass
    assert f"another cluster keeps its KV pages in {folder}" in "\n".join(died.value.lines)
