"""Why the C++ kernels could not be built is noted, and everything is installed without them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What a build needs of the sources."""
    native = tmp_path / "kernels" / "native"
    native.mkdir(parents=True)
    (native / "attention.cpp").write_text('extern "C" int sps2() { return 0; }\n')
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return native


def build(native: Path, **environment: str) -> str:
    """What is noted of a build that must not fail."""
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "built"],
        cwd=native.parent.parent,
        env=os.environ | environment,
        check=True,
        capture_output=True,
        timeout=300,
    )
    note = native / "unbuilt.txt"
    return note.read_text() if note.exists() else ""


def version(tree: Path) -> str:
    argv = [sys.executable, "setup.py", "-q", "--version"]
    done = subprocess.run(argv, cwd=tree, check=True, capture_output=True, text=True, timeout=300)
    return done.stdout.split()[-1]


def git(tree: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run(["git", *who, *words], cwd=tree, check=True, capture_output=True, timeout=60)


def test_the_version_is_the_tag_or_a_development_version_of_the_next(tree: Path) -> None:
    sources = tree.parent.parent
    found = re.search(r'^NEXT = "(.+)"$', (sources / "setup.py").read_text(), flags=re.M)
    assert found
    coming = found[1]
    assert version(sources) == f"{coming}.dev0", "without git"
    git(sources, "init", "-q")
    git(sources, "add", "setup.py", "pyproject.toml", "README.md", "LICENSE", "kernels")
    git(sources, "commit", "-q", "-m", "one")
    assert version(sources).startswith(f"{coming}.dev1+g")
    git(sources, "tag", f"v{coming}")
    assert version(sources) == coming
    git(sources, "commit", "-q", "--allow-empty", "-m", "two")
    assert version(sources).startswith(f"{coming}.dev1+g")


def test_there_is_no_compiler(tree: Path) -> None:
    assert "/no/compiler" in build(tree, CC="/no/compiler", CXX="/no/compiler")


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_the_first_error_of_the_compiler_until_it_builds(tree: Path) -> None:
    source = tree / "attention.cpp"
    right = source.read_text()
    source.write_text(f"{right}#warning all is well\n#error first\n#error second\n")
    said = build(tree)
    assert "attention.cpp:3:2: error: " in said
    assert "first" in said
    assert said.count("\n") == 1
    source.write_text(right)
    assert build(tree) == ""
    assert list((tree.parent.parent / "built").rglob("_attention*"))
