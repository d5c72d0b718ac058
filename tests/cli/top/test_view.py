"""What the screen says, at sizes from 80x24 on: everything is there, aligned, and fits."""

import pytest
from msgspec import structs
from rich.console import Console

from sps2.cli.top.controls import Controls
from sps2.cli.top.monitor import Monitor
from sps2.cli.top.snapshot import Picture
from sps2.cli.top.view import lines, view

from .acts import BUS, REQUEST, event, heartbeat, in_prefill, running, status, watched

SIZES = [(80, 24), (100, 30), (132, 40), (200, 50)]


def busy() -> Picture:
    monitor = watched()
    in_prefill(monitor)
    monitor.hear(event("queued", "b" * 16, prompt_tokens=100, max_tokens=16), 2.9)
    return monitor.picture(3.0)


def crowd(shards: int, requests: int) -> Picture:
    monitor = watched()
    for second in (1, 2, 3):
        for index in range(shards):
            for role in ("prefill", "decode"):
                monitor.hear(heartbeat(f"{role}-{index}", second), float(second))
    for index in range(requests):
        monitor.hear(event("queued", f"{index:012x}0000", prompt_tokens=index), index / 100)
    return monitor.picture(3.0)


def shown(picture: Picture, controls: Controls, width: int, height: int | None) -> list[str]:
    """As a terminal of that size gets it."""
    console = Console(width=width, height=height or 100, color_system=None)
    with console.capture() as capture:
        console.print(view(picture, controls, width, height))
    return capture.get().splitlines()


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_everything_is_there(width: int, height: int) -> None:
    rows = shown(busy(), Controls(), width, height)
    assert len(rows) == height
    assert max(map(len, rows)) <= width
    text = "\n".join(rows)
    for word in ("ready", "REQ/s", "TTFT p50", "420ms", "12.4ms", "QUEUE", "HIDDEN", "80%"):
        assert word in text
    for shard in ("prefill-0", "prefill-1", "decode-0", "decode-1"):
        assert any(row.lstrip().startswith(shard) and "busy" in row for row in rows)
    assert "3fa9c01be2d4" in text
    assert "prefill 40%" in text
    assert "queued" in text
    assert "q quit" in rows[-1]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("shards", [1, 5, 16, 40])
@pytest.mark.parametrize(
    "controls", [Controls(), Controls(panel="links"), Controls(panel="shards"), Controls(help=True)]
)
def test_it_fits_whatever_there_is(
    width: int, height: int, shards: int, controls: Controls
) -> None:
    rows = lines(crowd(shards, 60), controls, width, height)
    assert len(rows) == height
    assert max(row.cell_len for row in rows) <= width
    printed = shown(crowd(shards, 60), controls, width, height)
    assert len(printed) == height


def test_a_tiny_terminal_is_no_failure() -> None:
    for width, height in ((80, 5), (20, 3), (1, 1)):
        assert len(lines(busy(), Controls(), width, height)) == height


def test_what_is_cut_off_is_said() -> None:
    text = "\n".join(shown(crowd(16, 60), Controls(), 80, 24))
    assert "more" in text
    assert "BUSIEST LINKS" in text
    rows = shown(crowd(16, 60), Controls(panel="links"), 80, 60)
    assert any(row.lstrip().startswith("prefill-15") for row in rows)


def test_unknown_is_a_dash() -> None:
    rows = shown(Monitor("test", BUS).picture(0.0), Controls(), 80, 24)
    values = rows[2].split()
    assert values == ["-"] * 10
    assert "nothing sent yet" in "\n".join(rows)
    assert "no requests" in "\n".join(rows)

    monitor = Monitor("test", BUS)
    monitor.hear(heartbeat("prefill-0", 1), 1.0)
    row = next(row for row in shown(monitor.picture(1.0), Controls(), 80, 24) if "prefill-0" in row)
    assert row.split()[3:] == ["-", "1", "-", "-"]  # BUSY, PRE, IN, OUT


def test_the_matrix_says_who_sends_whom() -> None:
    rows = shown(busy(), Controls(), 80, 24)
    place = next(index for index, row in enumerate(rows) if "FROM→TO" in row)
    sending = next(row for row in rows[place:] if row.lstrip().startswith("prefill-1"))
    assert "3.0M" in sending
    assert sending.index("3.0M") + len("3.0M") == rows[place].index("decode-0") + len("decode-0")


def test_the_chosen_request_in_detail() -> None:
    controls = Controls(selected=REQUEST, opened=True)
    text = "\n".join(shown(busy(), controls, 80, 24))
    for word in (REQUEST, "7,900 tokens, 900 cached", "exact by gather", "prefill-0 prefill-1"):
        assert word in text
    rows = text.splitlines()
    assert any(row.split()[:3] == ["prefill", "1.00s", "50%"] for row in rows)
    gone = "\n".join(shown(watched().picture(3.0), controls, 80, 24))
    assert "has ended" in gone


def test_a_cluster_that_waits_says_for_what() -> None:
    monitor = watched()
    monitor.miss("the gateway at tcp://127.0.0.1:1")
    rows = shown(monitor.picture(3.0), Controls(), 80, 24)
    assert "lost" in rows[0]
    assert "waits for the gateway at tcp://127.0.0.1:1" in rows[1]
    monitor.take(status(missing="1 of 2 decode shards"), 3.0)
    rows = shown(monitor.picture(3.0), Controls(), 80, 24)
    assert "ready" in rows[0]
    assert rows[1].rstrip() == " missing: 1 of 2 decode shards"


def test_once_says_all_without_keys() -> None:
    rows = shown(crowd(16, 60), Controls(), 100, None)
    text = "\n".join(rows)
    assert "more" not in text
    assert "quit" not in text
    assert all(f"{index:012x}" in text for index in range(60))


def test_a_prefill_that_is_held_back_is_paused_and_its_detail_says_by_whom() -> None:
    monitor = watched()
    in_prefill(monitor)
    held = structs.replace(running("prefill"), waits_for="b2, which is more urgent")
    monitor.take(status(held), 3.0)
    assert any("paused 43%" in row for row in shown(monitor.picture(3.0), Controls(), 100, 30))
    opened = Controls(opened=True, selected=REQUEST)
    rows = shown(monitor.picture(3.0), opened, 100, 40)
    assert any("waits for" in row and "b2, which is more urgent" in row for row in rows)
    monitor.take(status(running("decode")), 3.5)
    assert not any("waits for" in row for row in shown(monitor.picture(3.5), opened, 100, 40))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_it_says_which_shard_is_left_out(width: int, height: int) -> None:
    picture = busy()
    why = "its link has 9.8 Mbit/s, 0.001 of the best"
    slow = [
        structs.replace(each, left_out=why) if each.id == "prefill-1" else each
        for each in picture.shards
    ]
    rows = shown(structs.replace(picture, shards=tuple(slow)), Controls(), width, height)
    assert any("prefill-1 is left out: its link has 9.8 Mbit/s" in row for row in rows)
    assert len(rows) == height
    assert max(map(len, rows)) <= width
