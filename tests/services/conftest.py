"""Whole groups of shards in one process compute with one thread, as shards that share cores do."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def linked(smollm2: Path, tmp_path: Path) -> Path:
    """The real model where files may be made beside it."""
    for path in smollm2.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path
