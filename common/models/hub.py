"""Fetches models from the Hugging Face hub, or from a server like it (HF_ENDPOINT)."""

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sps2.common.errors import Invalid
from sps2.common.models import Progress, gguf_names
from sps2.common.models.disk import require_space, watching
from sps2.common.models.registry import HubModel

_FILES = ["*.json", "*.jinja", "model*.safetensors"]


def fetch_hub(model: HubModel, downloads: Path, folder: Path, progress: Progress) -> Path | None:
    """Fetch a repository's model: a folder of safetensors, or GGUF files.

    Args:
        downloads: GGUF files go there.
        folder: an empty one, to which all else goes.

    Returns:
        The GGUF file to convert, the first of several parts; None if the model is in `folder`.

    Raises:
        Invalid: the hub is out of reach, has no such model, or the disk has no room.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    name, _, revision = model
    disable_progress_bars()
    try:
        siblings = HfApi().model_info(name, revision=revision, files_metadata=True).siblings or []
        sizes = {each.rfilename: each.size or 0 for each in siblings}
        wanted = _wanted(model, sizes)
        is_gguf = wanted[0].lower().endswith(".gguf")
        target = downloads if is_gguf else folder
        total = sum(sizes[file] for file in wanted)
        require_space(folder, 2 * total if is_gguf else total)
        with watching(target, total, f"downloading {name}", progress):
            snapshot_download(
                name, revision=revision, local_dir=target, allow_patterns=wanted, max_workers=4
            )
    except Invalid as error:
        raise Invalid(f"{name}: {error}") from error
    except Exception as error:  # the hub's client raises its own, httpx's and OSErrors
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise Invalid(f"cannot reach {name} on the Hugging Face hub: {reason[0]}") from error
    shutil.rmtree(target / ".cache", ignore_errors=True)
    return downloads / wanted[0] if is_gguf else None


def _wanted(model: HubModel, sizes: dict[str, Any]) -> list[str]:
    """The files to fetch: GGUF files if a quantisation is asked for, or nothing else is there."""
    others = [name for name in sizes if any(fnmatch(name, form) for form in _FILES)]
    has_safetensors = any(name.endswith(".safetensors") for name in others)
    if model.kind is None and (has_safetensors or not any(map(gguf_names.is_model, sizes))):
        if not others:
            raise Invalid("it has neither safetensors nor GGUF files")
        return others
    return gguf_names.select(sizes, model.kind)
