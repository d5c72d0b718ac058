"""Tests of the Triton kernels, and of shards that use them, in a process of their own."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


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


@pytest.mark.timeout(1800)  # all of them together
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_they_pass() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    folders = [str(TESTS / each / "gpu") for each in ("kernels", "services")]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *folders]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=TESTS.parent
    )
    assert done.returncode == 0, done.stdout + done.stderr
