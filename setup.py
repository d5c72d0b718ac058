"""The one thing that pyproject.toml cannot say yet: how the C++ kernels are built."""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("kernels/native")

setup(
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
    ]
)
