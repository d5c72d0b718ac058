"""What the names of GGUF files say: parts of a split model, and the quantisation."""

import re
from collections.abc import Iterable
from pathlib import Path

from sps2.common.errors import Invalid

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_KIND = re.compile(
    r"(?:^|[-.])(?P<kind>(?:UD-)?(?:I?Q\d|TQ\d|MXFP\d|BF16|F16|F32)\w*)$", re.IGNORECASE
)


def stem(name: str) -> str:
    """The name of a file without `.gguf` and the number of the part."""
    match = _PART.fullmatch(name)
    return match["stem"] if match else re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE)


def parts(path: Path) -> list[Path]:
    """All files of the model that `path` is the file, or a part, of.

    Raises:
        Invalid: a part is missing; the message names it.
    """
    names = part_names(path.name)
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing and names != [path.name]:
        raise Invalid(f"{path.parent} lacks {', '.join(missing)}, of {len(names)} parts of a model")
    return [path.parent / name for name in names]


def part_names(name: str) -> list[str]:
    """The names of all parts, the first one's first, for that of any; else the name alone."""
    match = _PART.fullmatch(name)
    if match is None:
        return [name]
    count = int(match["count"])
    return [f"{match['stem']}-{part:05}-of-{count:05}{name[-5:]}" for part in range(1, count + 1)]


def source(path: Path) -> Path | None:
    """The file to read a model from: of a file or part, or in a folder with nothing else.

    Returns:
        The only file, or the first part; None if there is no GGUF file.

    Raises:
        Invalid: a folder has several models.
    """
    if path.name.lower().endswith(".gguf") and not path.is_dir():
        return path.parent / part_names(path.name)[0]
    if not path.is_dir() or (path / "config.json").exists():
        return None
    try:
        found = [each for each in path.iterdir() if is_model(each.name)]
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}") from error
    firsts = sorted({part_names(each.name)[0] for each in found})
    if len(firsts) > 1:
        raise Invalid(f"{path} has several models; give the file of one: {', '.join(firsts)}")
    return path / firsts[0] if firsts else None


def is_model(name: str) -> bool:
    """Whether a file is a language model's, not a projector's or an importance matrix."""
    last = name.rpartition("/")[2].lower()
    return last.endswith(".gguf") and not last.startswith("mmproj") and "imatrix" not in last


def quantisation(name: str) -> str:
    """The quantisation that a file's name ends with, such as Q4_K_M; "" if it names none."""
    match = _KIND.search(stem(name))
    return match["kind"].upper() if match else ""


def select(names: Iterable[str], kind: str | None) -> list[str]:
    """The files of a repository that have a model in the quantisation `kind`, all parts.

    Args:
        names: all files of the repository.
        kind: case does not matter; None for the only one that there is.

    Raises:
        Invalid: there is none, several to choose from, or a part is missing.
    """
    present = set(names)
    found: dict[str, set[str]] = {}
    for name in sorted(filter(is_model, present)):
        folder, slash, last = name.rpartition("/")
        found.setdefault(quantisation(last) or stem(last), set()).add(
            folder + slash + part_names(last)[0]
        )
    kinds = ", ".join(sorted(found))
    if kind is None and len(found) > 1:
        raise Invalid(f"it has several quantisations; add one to the name, as in :Q4_K_M: {kinds}")
    chosen = next(iter(found)) if kind is None and found else (kind or "").upper()
    if chosen not in found:
        raise Invalid(f"it has no GGUF file of {chosen}, only {kinds}" if found else "no GGUF file")
    if len(found[chosen]) > 1:
        raise Invalid(f"it has several models in {chosen}: {', '.join(sorted(found[chosen]))}")
    (first,) = found[chosen]
    folder, slash, last = first.rpartition("/")
    wanted = [folder + slash + part for part in part_names(last)]
    missing = [name for name in wanted if name not in present]
    if missing:
        raise Invalid(f"it lacks {', '.join(missing)}, of {len(wanted)} parts of a model")
    return wanted
