"""What is said of hosts that cannot run what they are to, before anything is started."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sps2.cli import commands, ports, remote
from sps2.cli.hosts import Host, Hosts
from sps2.common import config
from sps2.common.config import Cluster
from sps2.common.errors import Invalid

HERE = "sh -c 'for last; do :; done; exec sh -c \"$last\"' ssh"
"""Runs what ssh would run elsewhere, on this machine."""


def alone(folder: Path, **has: str) -> Hosts:
    host = Host("alpha", has.pop("address", "127.0.0.1"), prefill=1, decode=1, home=str(folder))
    return Hosts((host,), **({"ssh": HERE, "python": sys.executable} | has))


@pytest.fixture
def cluster(checkpoint: Callable[[str], Path]) -> Cluster:
    return of_free_ports(str(checkpoint("smollm2")))


def of_free_ports(model: str, **shards: int) -> Cluster:
    return config.load(port=ports.free_base(), model=model, **shards)


def test_nothing_is_wrong(tmp_path: Path, cluster: Cluster) -> None:
    assert remote.check(cluster, alone(tmp_path)) == []


@pytest.mark.parametrize(
    ("has", "said"),
    [
        ({"ssh": "ssh -p 1 -F /dev/null"}, "cannot be reached: .*refused.*; try `ssh -p 1"),
        ({"ssh": "no-such-ssh"}, "no-such-ssh cannot be started"),
        ({"python": "/no/python"}, "/no/python -m sps2.cli.node failed there: .*/no/python"),
        ({"address": "192.0.2.1"}, "192.0.2.1 is not an address of that machine"),
    ],
)
def test_each_host_is_named(
    tmp_path: Path, cluster: Cluster, has: dict[str, str], said: str
) -> None:
    hosts = alone(tmp_path, **has)
    if has.get("ssh", "").startswith("ssh "):
        hosts = Hosts((Host("127.0.0.1", "127.0.0.1", prefill=1, decode=1),), hosts.ssh)
    with pytest.raises(Invalid, match=f"host '.*': {said}"):
        remote.check(cluster, hosts)


def test_a_python_without_sps2(tmp_path: Path, cluster: Cluster) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(Invalid, match=r"has no sps2 there.*set `python` of this host"):
        remote.check(cluster, alone(tmp_path, python=str(bare)))


def test_versions_apart(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "version", lambda _: "9.9.9")
    with pytest.raises(Invalid, match=r"'alpha': .*the launcher is of version 9\.9\.9: install"):
        remote.check(cluster, alone(tmp_path))


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"'alpha': model 'hf:no/model' is not in .*spsctl pull"):
        remote.check(of_free_ports("hf:no/model"), alone(tmp_path))


def test_models_apart(tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    """Three hosts of this machine, one of whose homes has another model under the same name."""
    hosts = []
    for number, family in enumerate(("smollm2", "smollm2", "llama2"), 1):
        models = tmp_path / f"home-{number}" / "models"
        models.mkdir(parents=True)
        (models / "org--model").symlink_to(checkpoint(family))
        hosts.append(Host(f"host-{number}", f"127.0.0.{number}", mixed=1, home=str(models.parent)))
    listed = Hosts(tuple(hosts), HERE, sys.executable)
    with pytest.raises(Invalid, match=r"^host 'host-3': its model is not the one"):
        remote.check(of_free_ports("hf:org/model", mixed=3), listed)


def test_a_clock_apart_is_told(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 100)
    (warning,) = remote.check(cluster, alone(tmp_path))
    assert re.search(r"host 'alpha' is 1\d\d\.\d s behind the one here", warning)
