"""Loads weights from safetensors, memory-mapped, so that processes share the memory."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sps2.common.errors import Invalid
from sps2.common.model import quantised
from sps2.common.model.collectives import Collectives
from sps2.common.model.config import DTYPES, ModelConfig, block_types, read
from sps2.common.model.llama import Llama
from sps2.common.model.share import (
    COLUMNS,
    ROWS,
    WHOLE,
    Quantize,
    Share,
    require_quantisable,
    share_of,
)
from sps2.common.model.stage import Stage
from sps2.common.model.tensor_names import EMBEDDING, FINAL_NORM, HEAD, shapes
from sps2.common.models import weight_files
from sps2.kernels.native.layer import serves
from sps2.kernels.weight_forms import BESIDE, FORMS, QuantisedWeight

log = logging.getLogger(__name__)


def load(
    folder: Path,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    quantize: Quantize = "none",
    *,
    collectives: Collectives | None = None,
    stage: Stage | None = None,
) -> Llama:
    """Load the model in a Hugging Face folder, or one share or stage of it.

    On the CPU, weights that keep the file's dtype or blocks stay mapped; others are converted
    copies.

    Args:
        dtype: "bfloat16", "float16" or "float32"; "auto" is the checkpoint's.
        quantize: "int8" or "int4" for the weights of layers and head, which are kept beside the
            model; "none" leaves them as they are stored. Where the C++ kernels do not support
            quantised weights, they are dequantised to `dtype`.
        collectives: of a share; then only its part of the file is read.
        stage: of a pipeline; then only its layers are read.

    Raises:
        Invalid: a file is missing or corrupt, a tensor missing, unknown or of the wrong shape, or
            the model is of an unsupported kind, or cannot be quantised; the message says which.
    """
    config = read(folder)
    stored = _read_all(folder)
    config = _settled(config, stored, folder)
    expected = shapes(config)
    kept = _in_blocks(folder, stored, expected)
    _check(stored, {name: expected[name] for name in expected if name not in kept}, folder)

    name = (config.dtype or _name(stored[FINAL_NORM].dtype)) if dtype == "auto" else dtype
    if name not in DTYPES:
        raise Invalid(f"dtype {name!r} is not supported; supported are {', '.join(DTYPES)}")
    wanted: torch.dtype = getattr(torch, name)
    share = WHOLE if collectives is None else collectives.share
    if quantize != "none":
        require_quantisable(config, quantize, share.size)
        kept |= quantised.load(folder, config, {**stored, **kept}, quantize)
    if stage is not None:
        config, stored, kept = stage.of(config), stage.weights(stored), stage.weights(kept)
    if share.size > 1 and config.tied and EMBEDDING in kept:
        kept.setdefault(HEAD, kept[EMBEDDING])  # which is split, and the embedding is not
    tensors = {
        key: part_of(stored.pop(key), key, share).to(device, wanted).requires_grad_(False)
        for key in list(stored)
        if key not in kept
    }
    levels = {key: quantised.part_of(weight, key, share) for key, weight in kept.items()}
    whole = torch.device(device).type == "cpu" and serves(wanted, *kept.values())
    served = {key: level for key, level in levels.items() if whole and level is not None}
    for key in kept.keys() - served.keys():
        part = part_of(kept[key].restored(wanted), key, share)
        tensors[key] = part.contiguous().to(device)
    if len(served) < len(kept):
        why = "a share ends within a block" if whole else "no kernel multiplies from blocks here"
        lost = len(kept) - len(served)
        log.info("%d of %d weights become %s: %s", lost, len(kept), name, why)
    return Llama(share_of(config, share.size), tensors, collectives, served, stage)


def part_of(tensor: Tensor, name: str, share: Share) -> Tensor:
    """A share's part of a checkpoint's tensor; a view unless it is split by columns."""
    if share.size == 1:
        return tensor
    *_, layer, kind = name.split(".")
    if layer in ROWS:
        start, stop = share.of(len(tensor))
        return tensor[start:stop]
    if layer in COLUMNS and kind == "weight":
        start, stop = share.of(tensor.shape[1])
        return tensor[:, start:stop].contiguous()
    if layer in COLUMNS and share.rank:
        return torch.zeros_like(tensor)  # a bias is added once
    return tensor


def _read_all(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise Invalid(f"{path} is not a sound safetensors file: {error}") from error
    return tensors


def _in_blocks(
    folder: Path, stored: dict[str, Tensor], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, QuantisedWeight]:
    """Take the weights that are in blocks out of `stored`."""
    found = {}
    for name, kind in block_types(folder).items():
        form, blocks, shape = FORMS.get(kind), stored.pop(name, None), expected.get(name, ())
        if form is None:
            raise Invalid(f"{folder}: {name} is in blocks of {kind!r}, which are not supported")
        if blocks is None or len(shape) != 2:
            raise Invalid(f"{folder}: config.json names {name} as in blocks, and there is none")
        outputs, inputs = shape
        wanted = [-(-outputs // BESIDE), inputs // form.inputs, form.size]
        if list(blocks.shape) != wanted or blocks.dtype != torch.uint8 or inputs % form.inputs:
            found_shape = f"{_name(blocks.dtype)} {list(blocks.shape)}"
            raise Invalid(f"{folder}: {name} is {found_shape}; blocks of {kind} are uint8 {wanted}")
        found[name] = QuantisedWeight(blocks, outputs, form)
    return found


def _settled(config: ModelConfig, stored: dict[str, Tensor], folder: Path) -> ModelConfig:
    """Remove redundant tensors. As in transformers, the weights, not the configuration, decide
    whether the head is tied to the embedding."""
    for name in list(stored):
        if name.endswith("rotary_emb.inv_freq"):
            del stored[name]
    if not config.tied or HEAD not in stored:
        return config
    head = stored.pop(HEAD)
    embedding = stored.setdefault(EMBEDDING, head)
    if head.dtype == embedding.dtype and torch.equal(head, embedding):
        return config
    log.warning(
        "%s: config.json says tie_word_embeddings, but the weights have an lm_head of their own, "
        "which is used; set tie_word_embeddings to false to be rid of this line",
        folder,
    )
    stored[HEAD] = head
    return replace(config, tied=False)


def _check(stored: dict[str, Tensor], expected: dict[str, tuple[int, ...]], folder: Path) -> None:
    missing = [name for name in expected if name not in stored]
    if missing:
        raise Invalid(f"{folder}: {_few(missing)} missing from the weights")
    unknown = [name for name in stored if name not in expected]
    if unknown:
        raise Invalid(f"{folder}: {_few(unknown)} in the weights, but not in such a model")
    for name, shape in expected.items():
        if tuple(stored[name].shape) != shape:
            found = list(stored[name].shape)
            raise Invalid(f"{folder}: {name} has shape {found}; config.json says {list(shape)}")
        if not stored[name].is_floating_point():
            raise Invalid(f"{folder}: {name} is of dtype {_name(stored[name].dtype)}")


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more + (" is" if len(names) == 1 else " are")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
