"""The Triton kernels run here under Triton's interpreter, on CPU tensors.

Triton decides for one when it is imported, so these tests run in a process of their own:
`tests/kernels/test_gpu.py` starts it, as does `TRITON_INTERPRET=1 pytest tests/kernels/gpu`.
"""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def level() -> int:
    """One kind of kernels only, whatever the CPU."""
    return 0
