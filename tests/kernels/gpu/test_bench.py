"""`make bench-gpu` works from the source tree alone, and says so where there is no GPU."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]


sys.path.insert(0, str(ROOT / "benchmarks"))


def test_every_stage_is_written_when_it_ends(tmp_path: Path) -> None:
    """Also if one fails, or takes too long."""
    import gpu_stages

    record = tmp_path / "record.json"

    def seen() -> Iterator[dict[str, object]]:
        yield json.loads(record.read_text())

    def failing() -> Iterator[dict[str, object]]:
        yield {"one": 1}
        raise ValueError("no")

    stages = [
        gpu_stages.Stage("first", "", lambda: iter([{"a": 1}, {"a": 2}])),
        gpu_stages.Stage("second", "", failing),
        gpu_stages.Stage("third", "", seen),
    ]
    gpu_stages.run(stages, {"device": "none"}, record, 60)
    written = json.loads(record.read_text())
    assert written["first"] == [{"a": 1}, {"a": 2}]
    assert written["second"] == [{"one": 1}]
    assert written["unfinished"] == {"second": "ValueError: no"}
    assert written["third"][0]["first"] == written["first"]

    found, unfinished = gpu_stages.run(stages[:1], {}, record, 0)
    assert found == {"first": [{"a": 1}]}
    assert "stopped after 1 rows" in unfinished["first"]


def bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the packages that are installed, but without the project."""
    environment = os.environ | {"PYTHONPATH": sysconfig.get_path("purelib")}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-S", *arguments]  # -S: an editable installation is not seen
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/")


def test_the_kernels_import_from_the_source_tree() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import pathlib, gpu_tree\n"
        f"gpu_tree.importable(pathlib.Path({str(ROOT)!r}))\n"
        "import sps2.kernels, gpu_checks, gpu_times, gpu_tune\n"
        "print(sps2.kernels.__file__)"
    )
    done = bare("-c", code)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == ROOT / "kernels"


def test_the_model_needs_torch_alone() -> None:
    """What a forward takes imports without the packages of the services."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import pathlib, gpu_tree\n"
        "for name in ('msgspec', 'msgpack', 'zmq', 'uvloop', 'ucxx', 'typer', 'rich', 'httptools',"
        " 'safetensors', 'tokenizers', 'gguf', 'psutil'):\n"
        "    sys.modules[name] = None\n"
        f"gpu_tree.importable(pathlib.Path({str(ROOT)!r}))\n"
        "import gpu_checks, gpu_times, gpu_tune, gpu_model\n"
        "import sps2.common.model.llama, sps2.common.model.local, sps2.common.model.pages"
    )
    done = bare("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = bare(str(ROOT / "benchmarks" / "gpu.py"))
    assert done.returncode == 1
    assert "bench-gpu needs an NVIDIA GPU" in done.stderr
    assert "no CUDA device" in done.stderr
