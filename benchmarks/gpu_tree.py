"""The kernels of this source tree as `sps2.kernels`, where nothing of the project is installed."""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path


def importable(root: Path) -> None:
    """Make `sps2.kernels` importable; an installation of it goes first."""
    try:
        if find_spec("sps2.kernels") is not None:
            return
    except ModuleNotFoundError:
        pass
    package = ModuleSpec("sps2", None, is_package=True)
    sys.modules.setdefault("sps2", module_from_spec(package))
    folder = root / "kernels"
    spec = spec_from_file_location(
        "sps2.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["sps2.kernels"] = module
    spec.loader.exec_module(module)
