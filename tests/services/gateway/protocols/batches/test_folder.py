"""Files of clients end with their gateway, even with one that is killed."""

import signal
import subprocess
import sys
import tempfile

import pytest

from sps2.services.gateway.protocols.batches.folder import Folder, remove_leftovers
from sps2.services.gateway.protocols.batches.store import Store

KILLED = """
import os, signal
from sps2.services.gateway.protocols.batches.store import Store
writer = Store(1 << 20).writer("")
writer.write(b"what a client said")
writer.keep("a.jsonl", "batch")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_files_of_a_killed_gateway_are_removed_by_the_next(temporary):
    store = Store(1 << 20)
    file = store.writer("")
    file.write(b"x")
    kept = file.keep("b.jsonl", "batch")
    killed = subprocess.run([sys.executable, "-c", KILLED], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len([*temporary.iterdir()]) == 2
    remove_leftovers()
    (folder,) = temporary.iterdir()
    assert store.get(kept.id, "").path.parent == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    store.close()
    assert not [*temporary.iterdir()]


def test_only_leftovers_are_removed(temporary):
    (temporary / "sps2-other").mkdir()
    (temporary / "elsewhere").mkdir()
    (temporary / "sps2-gateway-link").symlink_to(temporary / "elsewhere")
    (temporary / "sps2-gateway-file").write_text("x")
    (left := temporary / "sps2-gateway-left").mkdir()
    alive = Folder()
    remove_leftovers()
    assert not left.exists()
    assert len([*temporary.iterdir()]) == 5
    alive.remove()
    assert len([*temporary.iterdir()]) == 4
