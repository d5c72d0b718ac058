"""Some hundred changed inputs for every parser, and a fuzzer that finds what was planted."""

import logging
import mmap
import os
import random
from pathlib import Path
from typing import Any

import pytest

from sps2.common.bus import wire
from sps2.common.errors import Invalid
from sps2.services.decode.kv.page_file import PageFormat

from . import mutate
from .bus import BusServer
from .files_local import Pages
from .target import Pieces, Target
from .targets import TARGETS
from .watch import tried

COUNT = 250


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPS2_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("name", TARGETS)
async def test_changed_inputs_are_refused_in_words(name: str, tmp_path: Path) -> None:
    report = await tried(TARGETS[name](tmp_path), 1, count=COUNT)
    assert not report.findings, "\n".join(report.lines())
    assert report.inputs == COUNT


@pytest.mark.parametrize("name", sorted(TARGETS.keys() - {"tensors"}))  # whose inputs open first
def test_a_seed_makes_the_same_input_again(name: str, tmp_path: Path) -> None:
    target = TARGETS[name](tmp_path)
    for seed in range(20):
        first, second = (target.case(random.Random(f"{name} {seed}")) for _ in range(2))
        assert first == second


class Faulty(Target):
    """Reads anything, and has one fault of its kind."""

    name = "faulty"

    def __init__(self, folder: Path, fault: str) -> None:
        super().__init__(folder)
        self._fault = fault
        self._kept: list[Any] = []

    def case(self, dice: random.Random) -> Pieces:
        return [mutate.changed(dice, b"some text that is long enough to be changed")]

    async def feed(self, pieces: Pieces) -> None:
        first = pieces[0][:1]
        match self._fault:
            case "error" if first != b"s":
                raise KeyError(first)
            case "log" if first != b"s":
                logging.getLogger("sps2.fault").error("a message was dropped")
            case "hang" if first != b"s":
                while True:
                    pass
            case "objects":
                self._kept += [[] for _ in range(1000)]
            case "memory":
                more = mmap.mmap(-1, 1 << 20)  # not from the heap, which may have room
                more.write(bytes(1 << 20))
                self._kept.append(more)
            case "descriptors":
                self._kept.append(os.open(os.devnull, os.O_RDONLY))
        raise Invalid("no")

    async def __aexit__(self, *error: object) -> None:
        for each in self._kept if self._fault == "descriptors" else ():
            os.close(each)


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("error", "KeyError"),
        ("log", "logged: a message was dropped"),
        ("hang", "not done after 0.2 s of computing"),
        ("objects", "more objects"),
        ("memory", "more MB of memory"),
        ("descriptors", "more descriptors"),
    ],
)
async def test_what_is_planted_is_found(tmp_path: Path, fault: str, what: str) -> None:
    report = await tried(Faulty(tmp_path, fault), 1, count=100, cpu_s=0.2, limits=(20_000, 20, 20))
    assert [what in each.what for each in report.findings] == [True], "\n".join(report.lines())
    if fault in ("error", "log", "hang"):
        (found,) = report.findings
        assert Faulty(tmp_path, fault).case(random.Random(f"faulty {found.seed}"))[0][:1] != b"s"


async def test_nothing_is_found_where_nothing_is_planted(tmp_path: Path) -> None:
    report = await tried(Faulty(tmp_path, ""), 1, count=100, limits=(20_000, 20, 20))
    assert (report.findings, report.said) == ([], 100)


async def test_a_damaged_page_that_is_used_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PageFormat, "check", lambda *_: None)
    report = await tried(Pages(tmp_path), 1, count=100)
    assert ["a damaged page was used" in each.what for each in report.findings] == [True]


async def test_a_fault_behind_a_socket_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack = wire.unpack_header

    def faulty(data: bytes) -> wire.Header:
        header = unpack(data)
        if header.kind is wire.Kind.CANCEL:
            raise ZeroDivisionError
        return header

    monkeypatch.setattr(wire, "unpack_header", faulty)
    report = await tried(BusServer(tmp_path), 1, count=400)
    assert any("ZeroDivisionError" in each.what for each in report.findings)
