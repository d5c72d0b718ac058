"""Shards on a second device, whose kernels are Triton's: see `tests/kernels/gpu/conftest.py`."""

from ...interpreted import why_not

if why_not():
    collect_ignore_glob = ["test_*.py"]
