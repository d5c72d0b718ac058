"""A model's weights in 8 or 4 bits: made once, kept beside the model, and memory-mapped."""

import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sps2.common.errors import Invalid
from sps2.common.model.config import ModelConfig
from sps2.common.model.share import COLUMNS, GROUP, ROWS, SIDE, Quantize, Share
from sps2.common.model.tensor_names import EMBEDDING, HEAD, shapes
from sps2.common.models import fingerprint, weight_files
from sps2.common.models.file_lock import alone
from sps2.kernels import weight_forms as kernel
from sps2.kernels.native.layer import Weight
from sps2.kernels.weight_forms import QuantisedWeight
from sps2.kernels.weight_quantize import MADE, Bits, quantise

FOLDER = "quantised"
"""A sub-folder of the model's, since other programs load every weights file of a model's folder."""
FORMAT = 1
"""The file's format, part of its name like the fingerprint of the model."""

BITS: dict[Quantize, tuple[Bits, Bits]] = {"int8": (8, 8), "int4": (4, 8)}
"""Bits of layers and of the head; 4 bits in the head cost more quality than they save time."""

assert (GROUP, SIDE) == (kernel.GROUP, kernel.BESIDE)

log = logging.getLogger(__name__)


def load(
    folder: Path, config: ModelConfig, stored: Mapping[str, Weight], how: Quantize
) -> dict[str, QuantisedWeight]:
    """The quantised weights of all products by name, `HEAD` included.

    The first process writes the file, which takes seconds per 100 million weights; others wait.

    Args:
        stored: the checkpoint's weights; the embedding is not quantised.

    Raises:
        Invalid: the file cannot be written or read, or a weight does not fit float16.
    """
    path = folder / FOLDER / f"{how}-{FORMAT}-{fingerprint(folder)}.safetensors"
    try:
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            shutil.copymode(folder, path.parent)
            with alone(path):
                if not path.exists():
                    _make(path, config, stored, how)
        with safe_open(path, framework="pt") as file:
            return {
                name: QuantisedWeight(file.get_tensor(name), rows, MADE[BITS[how][name == HEAD]])
                for name, (rows, _) in _products(config).items()
            }
    except SafetensorError as error:
        raise Invalid(f"{path} is damaged ({error}); remove it, and it is made again") from error
    except OSError as error:
        raise Invalid(
            f"cannot keep {how} weights at {path}: {error.strerror}; they lie beside the model, "
            "which must be in a folder that can be written, with room for them"
        ) from error


def part_of(weight: QuantisedWeight, name: str, share: Share) -> QuantisedWeight | None:
    """A share's part of a weight: a view if it is split by rows, a copy if by columns.

    Returns:
        The part; None if the share begins or ends within a block.
    """
    layer = name.split(".")[-2]
    rows, columns = (share.of(whole) for whole in weight.shape)
    if share.size > 1 and layer in ROWS:
        return weight.rows(*rows) if weight.divides_rows(*rows) else None
    if share.size > 1 and layer in COLUMNS:
        return weight.columns(*columns) if weight.divides_columns(*columns) else None
    return weight


def _make(path: Path, config: ModelConfig, stored: Mapping[str, Weight], how: Quantize) -> None:
    start = time.monotonic()
    log.info("quantising the weights to %s, once: %s", how, path)
    made = {}
    for name in _products(config):
        weight = stored[EMBEDDING] if name == HEAD and config.tied else stored[name]
        if isinstance(weight, QuantisedWeight):
            weight = weight.restored(torch.float32)
        try:
            made[name] = quantise(weight, BITS[how][name == HEAD]).blocks
        except ValueError as error:
            raise Invalid(f"{path.parent.parent}: {name} cannot be quantised: {error}") from error
    part = path.with_suffix(".part")
    save_file(made, part)
    shutil.copymode(weight_files(path.parent.parent)[0], part)
    os.replace(part, path)
    for stale in path.parent.glob(f"{how}-*"):
        if stale != path:
            stale.unlink(missing_ok=True)
    log.info("quantised in %.1f s", time.monotonic() - start)


def _products(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of matrix products."""
    kept: dict[str, tuple[int, ...]] = {
        name: shape for name, shape in shapes(config).items() if len(shape) == 2
    }
    return kept | {HEAD: kept.pop(EMBEDDING)}
