"""Models for tests: tiny random checkpoints of every family, and the real one, pulled once."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from .checkpoints import write_checkpoint
from .interpreted import why_not

settings.register_profile("same", derandomize=True, database=None, deadline=None, print_blob=True)
settings.register_profile("random", derandomize=False, deadline=None, print_blob=True)
# every run tries the same examples: HYPOTHESIS_PROFILE=random looks for new ones, at night
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# programs that tests start must hear Ctrl-C, which what runs in the background ignores
signal.signal(signal.SIGINT, signal.default_int_handler)
# read when torch is loaded: threads that spin while they wait are very slow on a busy machine
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# read when Triton is loaded: its kernels run on CPU tensors, in its interpreter
os.environ.setdefault("TRITON_INTERPRET", "1")

LONGEST = ("gpu", "chaos", "test_tensor_parallel.py", "test_up.py", "e2e")


def pytest_report_header() -> list[str]:
    reason = why_not()
    return [f"left out: the tests of Triton kernels: {reason}"] if reason else []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: none is left to one worker at the end."""
    items.sort(key=lambda item: not set(LONGEST) & set(item.path.parts))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes (once) a folder with random weights and a tokeniser, for a name of `FAMILIES`."""
    root = tmp_path_factory.mktemp("checkpoints")

    def make(family: str) -> Path:
        folder = root / family
        if not folder.exists():
            write_checkpoint(family, folder)
        return folder

    return make


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real smollm2-135m, pulled to the default home if it is not there yet."""
    from sps2.common.models.pull import pull

    return pull("smollm2-135m", lambda *_: None)
