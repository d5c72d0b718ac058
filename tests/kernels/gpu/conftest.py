"""The Triton kernels run here under Triton's interpreter, on CPU tensors.

Triton decides for one when it is imported and when a kernel is defined, so both happen here;
nobody else's processes are told.
"""

import os
import pkgutil
import sys
from importlib import import_module

import numpy
import pytest

from sps2.kernels import gpu

INTERPRET = "TRITON_INTERPRET"


def _why_not() -> str | None:
    """Import Triton and the kernels to be interpreted."""
    if "triton" in sys.modules:
        return "Triton was imported to compile: run these tests in a process of their own"
    before = os.environ.get(INTERPRET)
    os.environ[INTERPRET] = "1"
    try:
        import triton

        for module in pkgutil.iter_modules(gpu.__path__, f"{gpu.__name__}."):
            import_module(module.name)
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    finally:
        os.environ.pop(INTERPRET) if before is None else os.environ.update({INTERPRET: before})
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < (3, 7) and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0":
        return f"the interpreter of Triton {triton.__version__} needs numpy < 2.4"
    return None


if why := _why_not():
    pytest.skip(why, allow_module_level=True)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTERPRET, "1")


@pytest.fixture(autouse=True)
def level() -> int:
    """One kind of kernels only, whatever the CPU."""
    return 0
