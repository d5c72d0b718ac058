"""Writes the weights of a GGUF model as a safetensors file, in blocks or as numbers."""

import errno
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from sps2.common.errors import Invalid
from sps2.common.models import Progress, gguf_blocks
from sps2.kernels import native
from sps2.kernels.weight_forms import BESIDE

PIECE = 1 << 24
"""Weights that are converted at a time."""

_SAFETENSORS_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
_NUMBERS = {"F64", "F32", "F16", "BF16"}
_FREQUENCIES = "rope_freqs.weight"
_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GLOBAL_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

log = logging.getLogger(__name__)


def kept_types(tensors: Mapping[str, Any]) -> dict[str, str]:
    """The weights that stay in blocks, by their names in checkpoints, with their types.

    There are none without the C++ kernels: numbers are then quicker to start with, and processes
    share them. A line in the log names the types that become numbers.
    """
    types = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    kept = {
        name: kind
        for name, kind in types.items()
        if native.level and gguf_blocks.is_kept(kind) and len(tensors[name].shape) == 2
    }
    others = sorted({types[name] for name in types.keys() - kept.keys()} - _NUMBERS)
    if others:
        why = "have no kernel" if native.level else "need the C++ kernels"
        log.warning("weights in %s %s: they become numbers", ", ".join(others), why)
    return {_name(name): kind for name, kind in kept.items()}


def write(
    path: Path,
    config: dict[str, Any],
    tensors: Mapping[str, Any],
    kept: Mapping[str, str],
    expected: Mapping[str, tuple[int, ...]],
    progress: Progress,
) -> None:
    """Write a safetensors file, tensor by tensor, its data 64-byte aligned for bf16 gemv.

    Args:
        config: of config.json: weights that are not in blocks get its dtype.
        tensors: of `GgufModel`.
        kept: the weights that stay in blocks, of `kept_types`.
        expected: names and shapes of all weights.

    Raises:
        Invalid: a tensor is not known.
        KeyError: one is lacking.
        OSError: the disk is full.
    """
    dtype: torch.dtype = getattr(torch, config["dtype"])
    stored = {_name(name): each for name, each in tensors.items() if name != _FREQUENCIES}
    for name in expected:
        stored[name]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    total = 0
    order = sorted(stored, key=lambda name: name not in kept)  # blocks are multiples of 32 bytes
    for name in order:
        place, size = _place(stored[name], kept.get(name), dtype)
        header[name] = place | {"data_offsets": [total, total + size]}
        total += size
    if shutil.disk_usage(path.parent).free < total:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for part in _parts(stored[name], config):
                if name in kept:
                    file.write(gguf_blocks.kept(kept[name], part).blocks.numpy().data)
                else:
                    values = torch.from_numpy(_values(part, stored[name])).to(dtype)
                    file.write(values.view(torch.uint8).numpy().data)
            progress("converting", file.tell() - len(text) - 8, total)


def _place(tensor: Any, kind: str | None, dtype: torch.dtype) -> tuple[dict[str, Any], int]:
    """A tensor's entry in the header, without offsets, and its bytes."""
    shape = [int(size) for size in reversed(tensor.shape)]
    if kind is None:
        return {"dtype": _SAFETENSORS_NAMES[dtype], "shape": shape}, math.prod(
            shape
        ) * dtype.itemsize
    form = gguf_blocks.kept_form(kind)
    blocks = [-(-shape[0] // BESIDE), shape[1] // form.inputs, form.size]
    return {"dtype": "U8", "shape": blocks}, math.prod(blocks)


def _parts(tensor: Any, config: dict[str, Any]) -> Iterator[Tensor]:
    """A tensor's rows as they are in the file, in the order of checkpoints, some at a time."""
    raw = tensor.data
    kind = tensor.name.split(".")[-2]
    if config["model_type"] == "llama" and kind in ("attn_q", "attn_k"):
        name = "num_attention_heads" if kind == "attn_q" else "num_key_value_heads"
        raw = _unpermute(raw, config[name])
    step = max(1, PIECE // (max(1, tensor.n_elements // len(raw)) * BESIDE)) * BESIDE
    for first in range(0, len(raw), step):
        yield torch.from_numpy(np.array(raw[first : first + step]))


def _values(raw: Tensor, tensor: Any) -> np.ndarray[Any, Any]:
    return np.array(gguf.dequantize(raw.numpy(), tensor.tensor_type))


def _name(stored: str) -> str:
    if stored in _GLOBAL_TENSORS:
        return _GLOBAL_TENSORS[stored]
    block, _, rest = stored.removeprefix("blk.").partition(".")
    part, _, kind = rest.rpartition(".")
    if not stored.startswith("blk.") or part not in _TENSORS:
        raise Invalid(f"tensor {stored!r} of the GGUF file is not known")
    return f"model.layers.{block}.{_TENSORS[part]}.{kind}"


def _unpermute(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Reorder rows from GGUF's interleaved rotary pairs to halves: [heads * head_dim, ..]."""
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)
