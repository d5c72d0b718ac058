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
    model_id,
    parse_hub,
    pulled,
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
    assert parse_hub("hf:Qwen/Qwen3-0.6B") == ("Qwen/Qwen3-0.6B", None, None)
    assert parse_hub("hf:a/b@refs/pr-1") == ("a/b", None, "refs/pr-1")
    assert parse_hub("hf:a/b:Q4_K_M") == ("a/b", "Q4_K_M", None)
    assert parse_hub("hf:a/b:UD-Q4_K_XL@v1") == ("a/b", "UD-Q4_K_XL", "v1")
    assert parse_hub("smollm2-135m") is None
    assert folder_of("hf:a/b@v1", tmp_path) == tmp_path / "models" / "a--b@v1"
    assert folder_of("hf:a/b@refs/1", tmp_path) == tmp_path / "models" / "a--b@refs--1"
    assert folder_of("hf:a/b:q4_k_m@v1", tmp_path) == tmp_path / "models" / "a--b+Q4_K_M@v1"
    for ref in (
        *("hf:", "hf:name", "hf:a/b/c", "hf:../..", "hf:a/..", "hf:a/b@", "hf:a/b@../x"),
        *("hf:a/b:", "hf:a/b:x/y", "hf:a/b@v1:Q4_0"),
    ):
        with pytest.raises(Invalid, match="hf:ORG/NAME"):
            folder_of(ref, tmp_path)


def test_pulled_models_have_their_references(tmp_path: Path) -> None:
    refs = ["hf:a/b", "hf:a/b:Q4_K_M", "hf:a/b:Q8_0@refs/pr-1"]
    for ref in refs:
        folder_of(ref, tmp_path).mkdir(parents=True)
    assert sorted(pulled(tmp_path)) == refs
    assert [folder_of(ref, tmp_path) for ref in refs] == [pulled(tmp_path)[ref] for ref in refs]
    assert model_id("hf:a/b:Q8_0@refs/pr-1") == "a/b:Q8_0"


def test_parts_and_their_folder_are_one_model(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-Q8_0-0000{part}-of-00002.gguf" for part in (1, 2)]
    parts[0].write_bytes(b"1")
    with pytest.raises(Invalid, match=r"lacks m-Q8_0-00002-of-00002\.gguf, of 2 parts"):
        folder_of(str(parts[0]), tmp_path)
    parts[1].write_bytes(b"2")
    folder = folder_of(str(tmp_path), tmp_path)
    assert folder.name.startswith("m-Q8_0-")
    assert {folder_of(str(part), tmp_path) for part in parts} == {folder}
    assert model_id(str(parts[1])) == "m-Q8_0"
    parts[1].write_bytes(b"33")
    assert folder_of(str(tmp_path), tmp_path) != folder
    (tmp_path / "other.gguf").touch()
    with pytest.raises(Invalid, match=r"several models; give .*m-Q8_0-00001.*, other\.gguf"):
        folder_of(str(tmp_path), tmp_path)


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
