"""What `spsctl status` shows of shards."""

from types import SimpleNamespace
from typing import Any

from sps2.cli.status import _shards
from sps2.common.messages import ShardStatus


def columns(*speeds: float | None) -> dict[str, list[str]]:
    shards = [
        ShardStatus(f"mixed-{index}", "mixed", "ready", speed=speed)
        for index, speed in enumerate(speeds)
    ]
    found: Any = SimpleNamespace(shards=shards)
    table = _shards(found, 16)
    return {str(column.header): [str(cell) for cell in column.cells] for column in table.columns}


def test_speeds_are_shown_where_they_differ() -> None:
    assert "SPEED" not in columns(None, None)
    assert columns(1.0, 0.25, None)["SPEED"] == ["1.00", "0.25", ""]
