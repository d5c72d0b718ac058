"""What `spsctl up` says of a cluster that is ready: its model, and how many shards it has."""

from pathlib import Path

import msgspec
import pytest

from sps2.cli import render
from sps2.cli.up import _welcome
from sps2.common.config import Bus, Cluster
from sps2.common.keys.keyring import Keyring
from sps2.common.messages import ClusterStatus, ShardStatus

STATUS = ClusterStatus("gpt-4", "", True, "", (), (), (), (), 0)


def first_line(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> str:
    _welcome(cluster, STATUS, 1.0, detached=True)
    return next(line for line in capsys.readouterr().out.splitlines() if line)


def test_the_model_itself_is_told_beside_what_clients_call_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = Cluster(model="/models/mine.gguf", quantize="int8", served_model_name=("gpt-4", "m"))
    said = first_line(named, capsys)
    assert said.startswith(
        "default is ready after 1.0 s: mine in int8 (clients call it gpt-4 or m)"
    )


@pytest.mark.parametrize(
    ("cluster", "shards"),
    [
        (Cluster(), "on 1 prefill shard and 1 decode shard"),
        (Cluster(prefill=2), "on 2 prefill shards and 1 decode shard"),
        (Cluster(prefill=0, decode=0, mixed=1), "on 1 mixed shard"),
        (Cluster(tp=2), "on 1 prefill shard (TP 2) and 1 decode shard (TP 2)"),
    ],
)
def test_one_shard_is_no_shards(
    cluster: Cluster, shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert first_line(cluster, capsys).endswith(shards)


@pytest.mark.parametrize(
    ("address", "transport", "said"),
    [
        ("tcp://127.0.0.1:1", "ucx", ""),
        ("tcp://10.0.0.1:1", "ucx", "UCX sends tensors in the clear"),
        ("tcp://127.0.0.1:1", "tcp", ""),
        ("tcp://10.0.0.1:1", "tcp", "Tensors travel in the clear"),
        ("tcp://10.0.0.1:1", "tcp+tls", ""),
    ],
)
def test_tensors_in_the_clear_between_hosts_are_told(
    address: str, transport: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ring = Keyring(tmp_path / "keys")
    ring.make("here")
    shard = ShardStatus("mixed-0", "mixed", "ready", 1, address, transport=transport)
    status = msgspec.structs.replace(STATUS, shards=(shard,))
    _welcome(Cluster(bus=Bus(keys=str(ring.folder))), status, 1.0, detached=True)
    told = capsys.readouterr().out
    assert f"over {transport}" in told
    assert ("in the clear" in told) is bool(said)
    assert said in told


def test_counted() -> None:
    assert [render.counted(count, "token") for count in (0, 1, 1000)] == [
        *("0 tokens", "1 token", "1,000 tokens"),
    ]
