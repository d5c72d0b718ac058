"""A lock that is held by one process at a time, and leaves no file behind."""

import subprocess
import sys
from pathlib import Path

import pytest

from sps2.common.models.file_lock import alone

ADD = """
import sys, time
from pathlib import Path
from sps2.common.models.file_lock import alone
path = Path(sys.argv[1])
for _ in range(50):
    with alone(path):
        number = int(path.read_text())
        time.sleep(0.0005)
        path.write_text(str(number + 1))
"""


def test_nobody_else_works_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "number"
    path.write_text("0")
    command = [sys.executable, "-c", ADD, str(path)]
    workers = [subprocess.Popen(command) for _ in range(4)]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert path.read_text() == "200"
    assert list(tmp_path.iterdir()) == [path]


def test_work_that_fails_leaves_no_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), alone(tmp_path / "model"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
