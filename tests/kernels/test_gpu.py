"""The tests of the Triton kernels pass, in a process where Triton is an interpreter."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "gpu"


@pytest.fixture(autouse=True)
def level() -> int:
    """One kind of kernels only, whatever the CPU."""
    return 0


def why_not() -> str | None:
    try:
        triton, numpy = (
            tuple(int(part) for part in version(name).split(".")[:2])
            for name in ("triton", "numpy")
        )
    except PackageNotFoundError as error:
        return f"{error.name} is not installed"
    if triton < (3, 7) and numpy >= (2, 4):
        return "the interpreter of Triton before 3.7 needs numpy < 2.4"
    return None


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_they_pass() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(FOLDER)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=FOLDER.parents[2]
    )
    assert done.returncode == 0, done.stdout + done.stderr
