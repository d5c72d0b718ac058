"""Digests of large files: right at once after any change, and read once while there is none."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from sps2.common.models import digests


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where digests are kept."""
    monkeypatch.setenv("SPS2_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "digests"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two that have been there for a while."""
    made = [tmp_path / "a", tmp_path / "b"]
    for path in made:
        path.write_bytes(path.name.encode() * 100_000)
    wait_until_settled(made)
    return made


def wait_until_settled(paths: list[Path]) -> None:
    last = max(path.stat().st_ctime for path in paths)
    while time.time() <= last + digests.SETTLED_S:
        time.sleep(0.05)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_known_is_not_read_again(files: list[Path], kept: Path) -> None:
    expected = [digest(path) for path in files]
    assert digests.of(files) == expected
    (file,) = kept.glob("*.json")
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(expected[0], "0" * 64), encoding="utf-8")
    assert digests.of(files) == ["0" * 64, expected[1]]
    files[0].write_bytes(files[0].read_bytes())  # the same again, but who knows
    assert digests.of(files) == expected


def test_a_file_of_this_moment_is_not_remembered(tmp_path: Path, kept: Path) -> None:
    """It may be written to again within one tick of the clock that stamps it."""
    path = tmp_path / "new"
    path.write_bytes(b"1")
    assert digests.of([path]) == [digest(path)]
    assert path.name not in "".join(
        each.read_text(encoding="utf-8") for each in kept.glob("*.json")
    )


@pytest.mark.parametrize("garbage", [b"", b"{", b'{"x": 1}', b"\xff"])
def test_a_damaged_record_is_made_anew(files: list[Path], kept: Path, garbage: bytes) -> None:
    expected = digests.of(files)
    (file,) = kept.glob("*.json")
    file.write_bytes(garbage)
    assert digests.of(files) == expected
    assert expected[0] in file.read_text(encoding="utf-8")


def test_where_nothing_can_be_kept(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"a file")
    assert digests.of(files) == [digest(path) for path in files]
    os.unlink(files[1])
    with pytest.raises(FileNotFoundError):
        digests.of(files)
