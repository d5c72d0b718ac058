"""Run folders: what is up, and what only looks so."""

import os
from pathlib import Path

import pytest

from sps2.cli import runs
from sps2.cli.runs import Child, RunFolder, State
from sps2.common.config import Cluster, Gateway, Kv
from sps2.common.errors import Invalid, Refused


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))


def made(name: str) -> RunFolder:
    folder = RunFolder(name)
    folder.prepare(Cluster(name=name))
    return folder


def test_the_configuration_in_force_reads_back() -> None:
    cluster = Cluster(
        name="mine",
        model='/odd "path"',
        prefill=3,
        gateway=Gateway(port=8123),
        kv=Kv(page_tokens=16),
    )
    folder = RunFolder("mine")
    folder.prepare(cluster)
    assert folder.cluster() == cluster


def test_a_stale_state_is_not_up_even_if_its_pid_is_somebody_elses_now() -> None:
    folder = made("old")
    folder.write(State(os.getpid(), 0.0, {"gateway": Child(pid=os.getpid())}))
    folder.path.joinpath("lock").touch()
    assert not folder.is_up()
    assert folder.state() is None
    assert runs.running() == []


def test_up_while_owned() -> None:
    folder = made("mine")
    with folder.owned():
        folder.write(State(1234, 5.0, {"gateway": Child(pid=7, exits=2, last_exit="x")}))
        assert folder.is_up()
        state = folder.state()
        assert state is not None
        assert state.services["gateway"].exits == 2
        with pytest.raises(Refused, match="already up"), folder.owned():
            pass
    assert not folder.is_up()


def test_a_state_that_is_not_written_yet() -> None:
    folder = made("mine")
    with folder.owned():
        state = folder.state()
        assert state is not None
        assert state.services == {}


def test_choose() -> None:
    one, two = made("one"), made("two")
    with pytest.raises(Invalid, match="no cluster is up"):
        runs.choose(None)
    with pytest.raises(Invalid, match="'one' is not up"):
        runs.choose("one")
    with one.owned():
        assert runs.choose(None).name == "one"
        with two.owned(), pytest.raises(Invalid, match="several clusters are up"):
            runs.choose(None)


def test_logs_of_the_last_run_are_set_aside() -> None:
    folder = made("mine")
    folder.log("gateway").write_text("a\nb\nc\n")
    assert folder.tail("gateway", 2) == ["b", "c"]
    folder.prepare(Cluster(name="mine"))
    assert folder.tail("gateway", 2) == []
    assert (folder.logs / "gateway.log.old").read_text() == "a\nb\nc\n"
