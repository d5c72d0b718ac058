"""The place of a joined cluster on this machine."""

import stat
from pathlib import Path

import pytest

from sps2.cli.commands import commands
from sps2.cli.join import here
from sps2.cli.runs import Joined, RunFolder
from sps2.common.config import Cluster
from sps2.common.keys.keyring import Keyring
from sps2.common.messages import Admission


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))


def test_a_machine_can_join_several_times_each_in_a_folder_of_its_own() -> None:
    with here.claimed("home") as one, here.claimed("home") as two:
        assert (one.name, two.name) == ("home", "home-2")
        assert here.machine_id(one) != here.machine_id(two)
        before = here.machine_id(one)
    with here.claimed("home") as again:
        assert again.name == "home"
        assert here.machine_id(again) == before, "the cluster knows it again"


def test_a_cluster_that_is_up_here_keeps_its_folder() -> None:
    with RunFolder("home").owned(), here.claimed("home") as folder:
        assert folder.name == "home-2"


def test_the_key_is_private_and_is_forgotten(tmp_path: Path) -> None:
    Keyring(tmp_path / "keys").make("home")
    key = (tmp_path / "keys" / "cluster.key").read_bytes()
    with here.claimed("home") as folder:
        cluster = here.received(folder, Admission("mixed = 1", key, ("mixed-1",), "m", (), 0.0))
        (kept,) = folder.path.rglob("cluster.key")
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
        assert (cluster.mixed, cluster.bus.keys) == (1, str(kept.parent))
        here.forget(folder)
        assert not [*folder.path.rglob("cluster.key")]


def test_only_the_given_shards_run_here_at_this_machines_address() -> None:
    folder = RunFolder("home")
    cluster = Cluster(name="home", prefill=3, decode=1, tp=2)
    names = ("prefill-2", "prefill-2.1")
    folder.prepare(cluster, joined=Joined(names, "10.0.0.6"))
    made = commands(folder.cluster(), folder)
    assert tuple(made) == names
    for command in made.values():
        assert command.argv[-2:] == ("--host", "10.0.0.6")
        assert command.argv[command.argv.index("--here") + 1] == "prefill-2,prefill-2.1"
    folder.prepare(cluster)
    assert "gateway" in commands(folder.cluster(), folder), "an `up` after that runs all"
