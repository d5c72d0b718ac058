"""A file that is read again when it has changed, and only when it can be."""

import json
import logging
import os
from pathlib import Path

import pytest

from sps2.common.errors import Invalid
from sps2.common.keys import write_private
from sps2.common.keys.reload import Reloaded


def put(path: Path, value: object) -> None:
    write_private(path, json.dumps(value).encode())


def test_changes_are_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "numbers.json"
    numbers = Reloaded(path, dict[str, int], {})
    assert numbers.now() == {}
    put(path, {"one": 1})
    assert numbers.now() == {"one": 1}
    put(path, {"two": 2})
    assert numbers.now() == {"two": 2}

    path.write_text('{"three":')
    with caplog.at_level(logging.ERROR):
        assert numbers.now() == numbers.now() == {"two": 2}
    assert [str(path) in each.getMessage() for each in caplog.records] == [True]
    put(path, {"four": 4})
    path.chmod(0o644)
    assert numbers.now() == {"two": 2}
    path.chmod(0o600)
    os.utime(path)
    assert numbers.now() == {"four": 4}
    path.unlink()
    assert numbers.now() == {}


def test_what_is_wrong_at_first_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    put(path, {"one": "1"})
    with pytest.raises(Invalid, match="malformed"):
        Reloaded(path, dict[str, int], {})
