"""The kernels compile for GPUs that are not here, fit them, and are all compiled at start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]


def compiler(script: str, *arguments: str) -> str:
    """Run a script without Triton's interpreter."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, str(TESTS / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("target", ["90", "120"])
def test_tiles_fit_the_shared_memory(target: str) -> None:
    """sm_120 has less than sm_90, though its number is higher."""
    said = compiler("acceptance/gpu_compile.py", target, "--tiles")
    assert f"sm_{target}: " in said
    assert "flash | rows 128" in said


def test_no_size_needs_another_variant_than_those_at_start() -> None:
    assert compiler("kernels/gpu/variants.py", "7") == ""
