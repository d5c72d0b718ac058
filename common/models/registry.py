"""Finds and validates the folders of models; imports no torch."""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sps2.common import places
from sps2.common.errors import Invalid
from sps2.common.model.config import ModelConfig, read, read_json
from sps2.common.models import digests, gguf_names

Progress = Callable[[str, int, int], None]
"""Called with a stage in words, how much of it is done, and its total (0: unknown)."""

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_HUB = re.compile(
    r"hf:(?P<name>[\w.-]+/[\w.-]+)(?::(?P<kind>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?"
)


class HubModel(NamedTuple):
    """What an `hf:` reference names. kind: a quantisation of GGUF files, such as Q4_K_M."""

    name: str
    kind: str | None
    revision: str | None


def locate(ref: str, home: Path | None = None) -> Path:
    """The folder of a pulled or local model; nothing is downloaded.

    Args:
        ref: as given to `spsctl pull`: a known name, `hf:ORG/NAME[:QUANTISATION]`, a folder, or a
            .gguf file.

    Raises:
        Invalid: the model is not here; the message says how to get it.
    """
    local = Path(ref).expanduser()
    if local.is_dir() and (local / "config.json").exists():
        return local
    folder = folder_of(ref, home)
    if not folder.is_dir():
        raise Invalid(f"model {ref!r} is not in {folder.parent}; {_how_to_get(ref)}")
    return folder


def model_id(ref: str) -> str:
    """The name that clients use: ORG/NAME of the hub, or the name of a folder or file."""
    if ref.startswith("hf:"):
        return ref.removeprefix("hf:").partition("@")[0]
    return gguf_names.stem(Path(ref).expanduser().resolve().name) if "/" in ref else ref


def can_be_pulled(ref: str) -> bool:
    """Whether `spsctl pull` can get a model."""
    from sps2.common.models.pull import KNOWN

    return ref in KNOWN or ref.startswith("hf:") or _gguf(ref) is not None


def _how_to_get(ref: str) -> str:
    from sps2.common.models.pull import KNOWN

    if can_be_pulled(ref):
        return f"get it with `spsctl pull {ref}`"
    return (
        f"give {', '.join(KNOWN)}, hf:ORG/NAME, a folder or a .gguf file (`spsctl models` lists "
        "those that are here)"
    )


def folder_of(ref: str, home: Path | None = None) -> Path:
    """The folder for a model of `spsctl pull`. Raises Invalid if `ref` cannot name a model."""
    root = (home or places.cache()) / "models"
    if hub := parse_hub(ref):
        kind = f"+{hub.kind.upper()}" if hub.kind else ""
        revision = f"@{hub.revision}" if hub.revision else ""
        return root / f"{hub.name}{kind}{revision}".replace("/", "--")
    if source := _gguf(ref):
        return root / _name_of_file(source.resolve())
    if Path(ref).expanduser().is_dir():
        raise Invalid(f"{ref} is a folder without config.json or a .gguf file, so not a model")
    if not re.fullmatch(r"\w[\w.@-]*", ref):
        raise Invalid(
            f"{ref!r} names no model: give a known name (smollm2-135m), hf:ORG/NAME, "
            "a folder with config.json, or a .gguf file"
        )
    return root / ref


def pulled(home: Path | None = None) -> dict[str, Path]:
    """The folders of all pulled models, by their references."""
    root = (home or places.cache()) / "models"
    folders = sorted(root.glob("[!.]*")) if root.is_dir() else []
    return {_ref_of(folder.name): folder for folder in folders if folder.is_dir()}


def _ref_of(name: str) -> str:
    """The reference of a folder that `folder_of` named."""
    model, at, revision = name.partition("@")
    if "--" not in model:
        return name
    model = model.replace("--", "/", 1).replace("+", ":")
    return f"hf:{model}{at}{revision.replace('--', '/')}"


def parse_hub(ref: str) -> HubModel | None:
    """The parts of an `hf:` reference, None for others. Raises Invalid if it is malformed."""
    if not ref.startswith("hf:"):
        return None
    match = _HUB.fullmatch(ref)
    if match is None or ".." in ref:
        raise Invalid(f"{ref!r} is not of the form hf:ORG/NAME[:QUANTISATION][@REVISION]")
    return HubModel(match["name"], match["kind"], match["revision"])


def _gguf(ref: str) -> Path | None:
    """The GGUF file that a reference names, the first of several parts; None for others."""
    return gguf_names.source(Path(ref).expanduser())


def validate(folder: Path) -> None:
    """Check that a folder has a model that can be served, without reading the weights.

    Raises:
        Invalid: a file is missing, broken or unsupported; the message names it.
    """
    read(folder)
    require_tokenizer(folder)
    for path in weight_files(folder):
        with _opened(path):
            pass


def require_tokenizer(folder: Path) -> Path:
    """The folder's tokenizer.json. Raises Invalid if there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        hint = ""
        if (folder / "tokenizer.model").exists():
            hint = " (tokenizer.model must be converted, for example by transformers)"
        raise Invalid(f"{folder} lacks tokenizer.json{hint}")
    return path


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the single one, or else the parts that an index names.

    Raises:
        Invalid: there are none, or some are missing.
    """
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if index.exists():
        table = read_json(index).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise Invalid(f"{index} has no weight_map")
        names = sorted({Path(str(name)).name for name in table.values()})
    else:
        pickled = " (pytorch_model.bin must be converted)" if any(folder.glob("*.bin")) else ""
        raise Invalid(f"{folder} has no weights: neither {SINGLE} nor {INDEX}{pickled}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise Invalid(f"{folder} lacks {', '.join(missing)}, named in {INDEX}")
    return [folder / name for name in names]


def fingerprint(folder: Path) -> str:
    """A hash of weights and configuration, the same on every machine.

    It covers all bytes. They are read once, about a second per GB, and again after a change.

    Raises:
        Invalid: a file is missing or cannot be read.
    """
    paths = weight_files(folder)
    try:
        digest = hashlib.sha256((folder / "config.json").read_bytes())
        for path, found in zip(paths, digests.of(paths), strict=True):
            digest.update(f"{path.name}:{found}".encode())
    except OSError as error:
        raise Invalid(f"cannot read {error.filename}: {error.strerror}") from error
    return digest.hexdigest()[:16]


def item_bytes(dtype: str, folder: Path, config: ModelConfig) -> int:
    """Bytes of one activation value.

    Args:
        dtype: as configured; "auto" is the dtype in which the model in `folder` is stored.
    """
    stored = config.dtype or _stored_dtype(folder) if dtype == "auto" else dtype
    return _ITEM_BYTES[stored]


def _stored_dtype(folder: Path) -> str:
    path = weight_files(folder)[0]
    with _opened(path) as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in list(weights.keys())[:1]}
    return _STORED.get(kinds.pop() if kinds else "", "float32")


def _name_of_file(path: Path) -> str:
    """A folder name for a converted file and its other parts, different after a change."""
    identity = hashlib.sha256()
    for part in gguf_names.parts(path):
        try:
            stat = part.stat()
        except OSError as error:
            raise Invalid(f"cannot read {part}: {error.strerror}") from error
        identity.update(f"{part}:{stat.st_size}:{stat.st_mtime_ns}".encode())
    return f"{gguf_names.stem(path.name)}-{identity.hexdigest()[:8]}"


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open  # of the extra `server`

    try:
        with safe_open(path, framework="np") as weights:
            yield weights
    except (SafetensorError, OSError, ValueError) as error:
        raise Invalid(f"{path} is not a sound safetensors file: {error}") from error
