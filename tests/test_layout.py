"""The import map in pyproject.toml matches the tree, imports point one way, files stay small."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = {name: ROOT / folder for name, folder in SETUP["package-dir"].items()}
ORDER = ["sps2.kernels", "sps2.common", "sps2.services", "sps2.cli"]
"""Each package imports itself and those before it."""
SERVICES = ["any", "decode", "gateway", "kvdir", "prefill", "scheduler"]
MADE_OF = {"any": ["decode", "prefill"]}
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
    "sps2.services.kvdir.__main__",
    "sps2.services.scheduler.__main__",
]
MAX_LINES = 400


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, `from a import b` as both a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_every_package_is_listed() -> None:
    found = {
        ".".join([name, *init.parent.relative_to(folder).parts])
        for name, folder in FOLDERS.items()
        for init in folder.rglob("__init__.py")
    }
    assert found == set(SETUP["packages"])


def test_every_folder_with_code_is_a_package() -> None:
    lacking = {path.parent for path in SOURCES if not (path.parent / "__init__.py").exists()}
    assert not lacking


@pytest.mark.parametrize("package", FOLDERS)
def test_every_package_is_marked_as_typed(package: str) -> None:
    assert (FOLDERS[package] / "py.typed").exists()


@pytest.mark.parametrize("package", ORDER)
def test_imports_point_one_way(package: str) -> None:
    above = ORDER[ORDER.index(package) + 1 :]
    for path in FOLDERS[package].rglob("*.py"):
        for name in imports(path):
            for forbidden in above:
                assert not within(name, forbidden), f"{path}: {package} must not import {name}"


def test_kernels_import_nothing_of_ours() -> None:
    for path in FOLDERS["sps2.kernels"].rglob("*.py"):
        foreign = {
            name
            for name in imports(path)
            if within(name, "sps2") and not within(name, "sps2.kernels")
        }
        assert foreign <= {"sps2"}, f"{path} imports {foreign}"


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_no_other_service(service: str) -> None:
    own = [service, *MADE_OF.get(service, [])]
    others = [f"sps2.services.{name}" for name in SERVICES if name not in own]
    for path in (FOLDERS["sps2.services"] / service).rglob("*.py"):
        for name in imports(path):
            for other in others:
                assert not within(name, other), f"{path}: {service} must not import {name}"


def test_imports_are_absolute() -> None:
    for path in SOURCES:
        nodes = ast.walk(ast.parse(path.read_text()))
        assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes), path


def test_nothing_imports_the_bare_folders() -> None:
    bare = [name.removeprefix("sps2.") for name in FOLDERS]
    for path in [*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        for name in imports(path):
            assert name.split(".")[0] not in bare, f"{path}: write sps2.{name}"


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_control_plane_leaves_torch_alone(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr or f"{module} imports torch"


def test_files_stay_small() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert not {path for path, count in lengths.items() if count > MAX_LINES}
