"""What pyproject.toml cannot say: the version, and how the C++ kernels are built."""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools_scm import ScmVersion

NEXT = "0.2.0"
"""The release that is worked on, which a tag `v0.2.0` will make."""
NATIVE = Path("kernels/native")
UNBUILT = NATIVE / "unbuilt.txt"
"""Why the kernels could not be built: pip shows nothing of it. `make setup` and doctor do."""


def version_of(found: ScmVersion) -> str:
    """That of the commit's tag, or a development version of the next release."""
    return f"{found.tag}" if found.exact else f"{NEXT}.dev{found.distance or 0}"


class Build(build_ext):
    """As setuptools builds, for ctypes and so for every Python; `UNBUILT` where that fails."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        UNBUILT.unlink(missing_ok=True)
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            try:
                with _errors_to(said):
                    super().build_extension(ext)
            except Exception as error:
                said.seek(0)
                lines = [*said.read().splitlines(), str(error)]
                first = next((line for line in lines if re.search(r"\berror\b", line)), lines[-1])
                UNBUILT.write_text(first.strip() + "\n")
                raise
            finally:
                said.seek(0)
                sys.stderr.write(said.read())


class Wheel(bdist_wheel):
    """A wheel of this platform, for every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


@contextmanager
def _errors_to(file: IO[str]) -> Iterator[None]:
    """Have what compilers say on stderr in `file`."""
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


setup(
    use_scm_version={"version_scheme": version_of, "fallback_version": f"{NEXT}.dev0"},
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
    ext_modules=[
        Extension(
            "sps2.kernels.native._attention",
            sources=[str(NATIVE / "attention.cpp")],
            depends=sorted(map(str, NATIVE.glob("*.inc"))),
            extra_compile_args=[
                "-O3",
                "-g0",
                "-std=c++17",
                "-Wno-uninitialized",
                "-Wno-maybe-uninitialized",
            ],
            optional=True,  # without a compiler torch does the same, slower
        )
    ],
)
