"""All processes of one shard: their commands, and that they live and die together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sps2.cli import ports
from sps2.common.config import Cluster, load
from sps2.common.config import text as config_text
from sps2.common.errors import Invalid
from sps2.services import ranks


def test_every_rank_has_its_command() -> None:
    cluster = Cluster(prefill=2, decode=1, tp=2)
    file = Path("cluster.toml")
    first, second = ranks.commands(cluster, "prefill", file, 1, "10.0.0.1", "prefill-1,decode-0")
    assert first == [
        *(sys.executable, "-m", "sps2.services.prefill", "--index", "1", "--config", str(file)),
        *("--host", "10.0.0.1", "--here", "prefill-1,prefill-1.1,decode-0,decode-0.1"),
    ]
    assert second == [*first, "--rank", "1"]


def test_without_more_ranks_there_is_one() -> None:
    (only,) = ranks.commands(Cluster(), "decode", None, 0, None, None)
    assert only[1:] == ["-m", "sps2.services.decode", "--index", "0"]


@pytest.mark.parametrize("index", [-1, 1])
def test_a_shard_that_the_configuration_lacks(index: int) -> None:
    with pytest.raises(Invalid, match=f"1 decode shards: there is no decode-{index}"):
        ranks.commands(Cluster(), "decode", None, index, None, None)


def test_stages_of_a_pipeline_are_started_one_by_one() -> None:
    cluster = Cluster(pp=3)
    (first,) = ranks.commands(cluster, "decode", None, 0, None, None)
    assert first[1:] == ["-m", "sps2.services.decode", "--index", "0"]
    (last,) = ranks.commands(cluster, "decode", None, 0, None, "decode-0.2", 2)
    assert last == [*first, "--here", "decode-0.2", "--rank", "2"]


@pytest.mark.parametrize(("pp", "told"), [(3, "0 to 2"), (1, "leave `--rank` out")])
def test_a_stage_that_the_configuration_lacks(pp: int, told: str) -> None:
    with pytest.raises(Invalid, match=told):
        ranks.commands(Cluster(pp=pp), "decode", None, 0, None, None, 3)


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.mark.parametrize("ended", ["the launcher", "a rank"])
def test_they_live_and_die_together(ended: str) -> None:
    """Two processes that only wait, in place of a shard's."""
    script = (
        "import sys; from sps2.services import ranks; "
        "wait = [sys.executable, '-c', 'import time; time.sleep(600)']; "
        "sys.exit(ranks._together([wait, wait]))"
    )
    launcher = subprocess.Popen([sys.executable, "-c", script])
    try:
        until_s = time.monotonic() + 60
        while len(pids := children(launcher.pid)) < 2:
            assert time.monotonic() < until_s
            time.sleep(0.05)
        if ended == "a rank":
            os.kill(pids[1], signal.SIGKILL)
        else:
            time.sleep(0.2)  # its handlers are set before its processes start
            launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(60) == (1 if ended == "a rank" else 0)
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    finally:
        launcher.kill()


def test_a_single_rank_takes_the_place_of_the_launcher(tmp_path: Path) -> None:
    """Its one line of why it cannot run is the last, and its status the launcher's."""
    cluster = load(port=ports.free_base(), model=str(tmp_path / "none"))
    file = tmp_path / "cluster.toml"
    file.write_text(config_text.dump(cluster, "of a test"))
    argv = [sys.executable, "-m", "sps2.services.ranks", "prefill", "--config", str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "prefill-0 cannot run: " in done.stderr.splitlines()[-1]
