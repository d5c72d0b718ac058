"""`make bench-gpu` works from the source tree alone, and says so where there is no GPU."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]


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
