"""Model references lead to folders, or to words on how to get them."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sps2.common.errors import Invalid
from sps2.common.model.config import read
from sps2.common.models import (
    fingerprint,
    folder_of,
    item_bytes,
    locate,
    parse_hub,
    validate,
)

Checkpoint = Callable[[str], Path]


def test_pulled_models_are_found_by_name(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"model 'tiny' is not in .*; give smollm2-135m, hf:ORG/NAME"):
        locate("tiny", tmp_path)
    shutil.copytree(checkpoint("llama2"), tmp_path / "models" / "tiny")
    assert locate("tiny", tmp_path) == tmp_path / "models" / "tiny"


def test_the_default_home_is_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))
    assert folder_of("tiny") == tmp_path / "models" / "tiny"


def test_local_folders_are_themselves(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = checkpoint("llama2")
    assert locate(str(folder), tmp_path) == folder
    with pytest.raises(Invalid, match=r"folder without config\.json"):
        locate(str(tmp_path), tmp_path)


def test_hub_references(tmp_path: Path) -> None:
    assert parse_hub("hf:Qwen/Qwen3-0.6B") == ("Qwen/Qwen3-0.6B", None)
    assert parse_hub("hf:a/b@refs/pr-1") == ("a/b", "refs/pr-1")
    assert parse_hub("smollm2-135m") is None
    assert folder_of("hf:a/b@v1", tmp_path) == tmp_path / "models" / "a--b@v1"
    assert folder_of("hf:a/b@refs/1", tmp_path) == tmp_path / "models" / "a--b@refs--1"
    for ref in ("hf:", "hf:name", "hf:a/b/c", "hf:../..", "hf:a/..", "hf:a/b@", "hf:a/b@../x"):
        with pytest.raises(Invalid, match="hf:ORG/NAME"):
            folder_of(ref, tmp_path)


def test_converted_files_follow_their_contents(tmp_path: Path) -> None:
    file = tmp_path / "some.gguf"
    with pytest.raises(Invalid, match="cannot read"):
        folder_of(str(file), tmp_path)
    file.write_bytes(b"1")
    first = folder_of(str(file), tmp_path)
    assert first == folder_of(os.path.relpath(file), tmp_path)
    assert first.name.startswith("some-")
    file.write_bytes(b"22")
    assert folder_of(str(file), tmp_path) != first


@pytest.mark.parametrize("ref", ["", "..", "../x", "/none/such", "a b", "-x", "a\0b"])
def test_nonsense_names_nothing(ref: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        locate(ref, tmp_path)


def test_validate_names_the_broken_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("qwen2"), tmp_path / "model"))
    validate(folder)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        whole = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(Invalid, match=name):
            validate(folder)
        (folder / name).write_bytes(whole)
    (folder / "model.safetensors").write_bytes(b"\x10" * 300)
    with pytest.raises(Invalid, match=r"model\.safetensors is not a sound"):
        validate(folder)


def test_a_dtype_is_not_taken_from_broken_weights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("qwen2"), tmp_path / "model"))
    config = replace(read(folder), dtype=None)
    assert item_bytes("auto", folder, config) == 4
    (folder / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(Invalid, match=r"model\.safetensors is not a sound"):
        item_bytes("auto", folder, config)
    assert item_bytes("float16", folder, config) == 2


def test_fingerprints_tell_models_apart(checkpoint: Checkpoint, tmp_path: Path) -> None:
    one = fingerprint(checkpoint("qwen2"))
    assert one != fingerprint(checkpoint("llama2"))
    copy = Path(shutil.copytree(checkpoint("qwen2"), tmp_path / "copy"))
    assert fingerprint(copy) == one


@pytest.mark.parametrize("place", [-1, -100_000, 100_000])
@pytest.mark.parametrize("keeps_time", [False, True])
def test_one_other_bit_anywhere_is_another_model(
    checkpoint: Checkpoint, tmp_path: Path, place: int, keeps_time: bool
) -> None:
    """Written into the same file, as one that merges or converts in place does."""
    folder = Path(shutil.copytree(checkpoint("qwen2"), tmp_path / "model"))
    path = folder / "model.safetensors"
    before = os.stat(path)
    one = fingerprint(folder)
    with path.open("r+b") as file:
        file.seek(place, os.SEEK_SET if place > 0 else os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    if keeps_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(path).st_size == before.st_size > 200_000
    assert fingerprint(folder) != one
