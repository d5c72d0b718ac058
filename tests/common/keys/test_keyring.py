"""Several processes change a folder of keys at once, and no change is lost."""

import subprocess
import sys
from pathlib import Path

import pytest

from sps2.common.errors import Invalid
from sps2.common.keys.keyring import Keyring

PROCESSES, EACH = 4, 15
CHANGE = """
import sys
from pathlib import Path
from sps2.common.keys.keyring import Keyring
ring, worker, each = Keyring(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
for index in range(each):
    name = f"{worker}-{index}"
    ring.add_api_key(name)
    ring.add_client(name, ring.folder.parent / f"{name}.key")
    if index % 2:
        ring.revoke_api_key(name)
        ring.revoke_client(name)
"""


def test_no_change_of_several_processes_is_lost(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "keys")
    ring.make("here")
    workers = [
        subprocess.Popen([sys.executable, "-c", CHANGE, str(ring.folder), str(worker), str(EACH)])
        for worker in range(PROCESSES)
    ]
    assert [worker.wait() for worker in workers] == [0] * PROCESSES
    names = {f"{worker}-{index}" for worker in range(PROCESSES) for index in range(EACH)}
    kept = {name for name in names if int(name.partition("-")[2]) % 2 == 0}
    assert ring.clients().keys() == kept
    keys = ring.api_keys()
    assert keys.keys() == names
    assert {name for name in names if keys[name].revoked is None} == kept
    left = {path.name for path in ring.folder.iterdir()}
    assert left == {"cluster.key", "clients.json", "api.json"}


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "none")
    for change in (
        lambda: ring.add_api_key("a"),
        lambda: ring.revoke_api_key("a"),
        lambda: ring.add_client("a", tmp_path / "a.key"),
        lambda: ring.revoke_client("a"),
    ):
        with pytest.raises(Invalid, match=r"there is no key at .*none.*spsctl keys init"):
            change()
