"""Shards on a second device, whose kernels are Triton's: see `tests/kernels/gpu/conftest.py`."""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
