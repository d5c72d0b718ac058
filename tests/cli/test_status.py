"""What `spsctl status` shows of shards."""

from types import SimpleNamespace
from typing import Any

import pytest

from sps2.cli.status import _shards, show
from sps2.common.config import Cluster
from sps2.common.messages import ClusterStatus, Rates, ShardStatus


def columns(*speeds: float | None, link: float | None = None) -> dict[str, list[str]]:
    shards = [
        ShardStatus(f"mixed-{index}", "mixed", "ready", speed=speed, link=link)
        for index, speed in enumerate(speeds)
    ]
    found: Any = SimpleNamespace(shards=shards)
    table = _shards(found, 16)
    return {str(column.header): [str(cell) for cell in column.cells] for column in table.columns}


def test_speeds_are_shown_where_they_differ() -> None:
    assert "SPEED" not in columns(None, None)
    assert columns(1.0, 0.25, None)["SPEED"] == ["1.00", "0.25", ""]


def test_links_are_shown_where_they_differ() -> None:
    assert "LINK" not in columns(1.0, 0.25)
    assert columns(None, link=0.00123)["LINK"] == ["0.001"]


def test_it_says_which_shard_is_left_out_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    why = "its link has 9.8 Mbit/s, 0.001 of the best"
    found = ClusterStatus(
        "tiny",
        "0",
        True,
        "",
        (),
        (
            ShardStatus("mixed-0", "mixed", "ready"),
            ShardStatus("mixed-1", "mixed", "ready", left_out=why),
        ),
        (),
        (),
        0,
        rates=Rates(180.0, 9.5, 0.0002),
    )
    show(Cluster(), found, {})
    said = capsys.readouterr().out
    assert f"mixed-1 is left out: {why}" in said
    assert "mixed-0 is left out" not in said
    assert "180 GFLOP/s" in said
    assert "9.5 Gbit/s and 0.2 ms" in said
