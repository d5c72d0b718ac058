"""The folders of this source tree as `sps2.*`, where nothing of the project is installed."""

import sys
from pathlib import Path
from types import ModuleType


def importable(root: Path) -> None:
    """Make `sps2.kernels` and its neighbours importable from `root`."""
    package = ModuleType("sps2")
    package.__path__ = [str(root)]
    sys.modules["sps2"] = package
