"""Whether Triton's interpreter can run here, in which the GPU kernels are tested."""

from importlib.metadata import PackageNotFoundError, version


def why_not() -> str:
    """What keeps it from running; empty where nothing does."""
    try:
        triton, numpy = (
            tuple(int(part) for part in version(name).split(".")[:2])
            for name in ("triton", "numpy")
        )
    except PackageNotFoundError as error:
        return f"{error.name} is not installed"
    if triton < (3, 7) and numpy >= (2, 4):
        return "the interpreter of Triton before 3.7 needs numpy < 2.4"
    return ""
