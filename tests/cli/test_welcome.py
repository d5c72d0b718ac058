"""What `spsctl up` says of a cluster that is ready: its model, and how many shards it has."""

import pytest

from sps2.cli import render
from sps2.cli.up import _welcome
from sps2.common.config import Cluster
from sps2.common.messages import ClusterStatus

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


def test_counted() -> None:
    assert [render.counted(count, "token") for count in (0, 1, 1000)] == [
        *("0 tokens", "1 token", "1,000 tokens"),
    ]
