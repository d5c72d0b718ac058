"""pyproject.toml lists every package, imports point one way, files stay small."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .sources import tree_of

ROOT = Path(__file__).parent.parent
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = {name: ROOT / folder for name, folder in SETUP["package-dir"].items()}
ORDER = ["sps2.kernels", "sps2.common", "sps2.services", "sps2.cli"]
"""Each package imports itself and those before it."""
SERVICES = ["mixed", "decode", "gateway", "joining", "kvdir", "prefill", "scheduler"]
MADE_OF = {"mixed": ["decode", "prefill"]}
"""A shard that does both is made of the services that do either."""
SOURCES = sorted(path for folder in FOLDERS.values() for path in folder.rglob("*.py"))
TORCH_FREE = [
    "sps2.cli.main",
    "sps2.cli.supervise",
    "sps2.common.client",
    "sps2.common.models",
    "sps2.common.models.pull",
    "sps2.common.bus.peer",
    "sps2.common.bus.telemetry",
    "sps2.common.text.tokens",
    "sps2.services.gateway.__main__",
    "sps2.services.joining.__main__",
    "sps2.services.kvdir.__main__",
    "sps2.services.scheduler.__main__",
]
MAX_LINES = 400


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, `from a import b` as both a and a.b."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def of(package: str) -> dict[str, set[str]]:
    """What each module of a package imports, by the module's name."""
    folder = FOLDERS[package]
    return {
        ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(
            ".__init__"
        ): imports(path)
        for path in SOURCES
        if path.is_relative_to(folder)
    }


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_every_folder_with_code_is_a_listed_and_typed_package() -> None:
    found = {
        ".".join([name, *path.parent.relative_to(folder).parts])
        for name, folder in FOLDERS.items()
        for path in folder.rglob("*.py")
    }
    assert found == set(SETUP["packages"])
    assert all((path.parent / "__init__.py").exists() for path in SOURCES)
    assert all((folder / "py.typed").exists() for folder in FOLDERS.values())


def test_every_package_says_what_it_is() -> None:
    silent = [
        path
        for path in SOURCES
        if path.name == "__init__.py" and not ast.get_docstring(tree_of(path))
    ]
    assert not silent


def test_imports_point_one_way() -> None:
    for number, package in enumerate(ORDER):
        for module, names in of(package).items():
            for above in ORDER[number + 1 :]:
                assert not [name for name in names if within(name, above)], module


def test_no_cycle_in_kernels() -> None:
    modules = of("sps2.kernels")
    above = {
        module: names & set(modules) - {"sps2.kernels", module} for module, names in modules.items()
    }
    del above["sps2.kernels"]
    while leaves := [module for module, names in above.items() if not names & set(above)]:
        for module in leaves:
            del above[module]
    assert not above


def test_a_service_imports_no_other_service() -> None:
    modules = of("sps2.services")
    for service in SERVICES:
        own = [service, *MADE_OF.get(service, [])]
        others = [f"sps2.services.{name}" for name in SERVICES if name not in own]
        for module, names in modules.items():
            if within(module, f"sps2.services.{service}"):
                assert not [n for n in names if any(within(n, other) for other in others)], module


def test_imports_are_absolute_and_begin_with_sps2() -> None:
    bare = [name.removeprefix("sps2.") for name in FOLDERS if name != "sps2"]
    for path in [*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        for name in imports(path):
            assert name.split(".")[0] not in bare, f"{path}: write sps2.{name}"
    for path in SOURCES:
        nodes = ast.walk(tree_of(path))
        assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes), path


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_control_plane_leaves_torch_alone(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr or f"{module} imports torch"


def test_the_sdk_has_a_short_import() -> None:
    code = (
        "import sps2, sys; names = [getattr(sps2, name) for name in dir(sps2)]; "
        "from sps2 import *; from sps2.common.client import Client as own; "
        "assert Client is own and names; sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr


def test_files_stay_small() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert not {path for path, count in lengths.items() if count > MAX_LINES}


EXTRAS = (
    *("fastapi", "gguf", "httptools", "huggingface_hub", "jinja2", "prometheus_client"),
    *("safetensors", "starlette", "tokenizers", "torch", "uvicorn", "uvloop"),
    *("ifaddr", "zeroconf"),
)
"""Packages that only `sps2[server]` installs."""


def test_spsctl_and_the_sdk_need_no_extras() -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))\n"
        "import sps2.cli.main, sps2.common.client"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
