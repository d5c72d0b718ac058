"""The Triton kernels run here on CPU tensors, in Triton's interpreter: see `tests/conftest.py`."""

import pytest

from ...interpreted import why_not

if why_not():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def level() -> int:
    """One kind of kernels only, whatever the CPU."""
    return 0
