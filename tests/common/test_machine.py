"""What stands in on other systems for what only Linux has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sps2.cli import checks, node
from sps2.cli.hosts import Host, Hosts
from sps2.common import machine
from sps2.common.config import Cluster


def test_cores_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.cores() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6})
    assert machine.cores() == 3


def test_everything_that_counts_cores_works_as_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    from sps2.cli.commands import order

    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.cores() == 6
    assert Cluster(prefill=2, decode=3).shard_threads == 2
    assert "6 cores, 6 compute threads" in checks._processor(Cluster()).detail
    host = Host("alpha", "127.0.0.1", prefill=2)
    hosts = Hosts((host,))
    assert node.configured(order(Cluster(), hosts, host, ["prefill-0"])).threads == 3


def test_cores_that_nobody_can_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores() == 1


def test_a_processor_that_nothing_describes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert machine.cpu_flags()
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "none")
    assert machine.cpu_flags() == set()
    assert machine.cpu_name()


def test_doctor_tells_what_is_not_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks._system().verdict == "ok"
    monkeypatch.setattr(sys, "platform", "darwin")
    found = checks._system()
    assert found.verdict == "warning"
    assert "tested on Linux only" in found.detail
    assert machine.glibc("malloc_trim") is None


CHILD = """
import os, sys, time
from sps2.common import machine
sys.platform = {platform!r}
machine.end_with(int(sys.argv[1]))
print("lives", flush=True)
time.sleep(600)
"""
PARENT = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", {child!r}, str(os.getpid())])
sys.stdin.read()
"""


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_process_ends_with_its_parent(platform: str) -> None:
    code = PARENT.format(child=CHILD.format(platform=platform))
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"lives\n"
    parent.kill()
    parent.wait()
    assert parent.stdout.read() == b"", "the pipe ends with the child"
    parent.stdin.close()
    parent.stdout.close()


def test_a_process_whose_parent_is_gone_does_not_start() -> None:
    code = CHILD.format(platform="linux")
    done = subprocess.run([sys.executable, "-c", code, "1"], capture_output=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout == b""
