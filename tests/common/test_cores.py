"""Cores are counted on systems that cannot say which ones a process may use."""

import os

import pytest

from sps2.cli import checks, node
from sps2.cli.hosts import Host, Hosts
from sps2.common import cores
from sps2.common.config import Cluster


def test_cores_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores.usable() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6})
    assert cores.usable() == 3


def test_everything_that_counts_cores_works_as_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    from sps2.cli.commands import order

    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cores.usable() == 6
    assert Cluster(prefill=2, decode=3).shard_threads == 2
    assert "6 cores, 6 compute threads" in checks._processor(Cluster()).detail
    host = Host("alpha", "127.0.0.1", prefill=2)
    hosts = Hosts((host,))
    assert node.configured(order(Cluster(), hosts, host, ["prefill-0"])).threads == 3


def test_cores_that_nobody_can_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores.usable() == 1
