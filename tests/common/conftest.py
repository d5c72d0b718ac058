"""GGUF files for tests, made the way llama.cpp's converter makes them; loops for the bus's."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import uvloop
from safetensors.torch import load_file

from sps2.common.model.config import read

from ..gguf_blocks import random_blocks

WriteGguf = Callable[..., Path]
ON_BOTH_LOOPS = ("test_rpc.py", "test_telemetry.py", "test_curve.py")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Services run on uvloop, the SDK on either."""
    if item.path.name in ON_BOTH_LOOPS:
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture(scope="session")
def write_gguf() -> WriteGguf:
    """Writes a Hugging Face folder as GGUF; see `write_gguf_file`."""
    return write_gguf_file


def write_gguf_file(
    source: Path,
    path: Path,
    architecture: str,
    extra: Callable[[Any], object] = lambda w: None,
    kind_of: Callable[[str], str | None] = lambda name: None,
) -> Path:
    """`extra` adds to the writer what the plain file lacks, or what should not be there.

    `kind_of` gives the type of a weight by its name in the file, None for float32. Types that
    the package gguf cannot make get random blocks.
    """
    config = read(source)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.layers)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope.rope_theta)
    vocabulary = json.loads((source / "tokenizer.json").read_text())["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    extra(writer)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.layers)
    for name, tensor in load_file(source / "model.safetensors").items():
        values = tensor.numpy()
        if architecture == "llama" and ".q_proj" in name:
            values = interleave(values, config.heads)
        if architecture == "llama" and ".k_proj" in name:
            values = interleave(values, config.kv_heads)
        stem, _, kind = name.rpartition(".")
        stored = f"{names.get_name(stem)}.{kind}"
        quantised = kind_of(stored) if values.ndim == 2 else None
        if quantised is None:
            writer.add_tensor(stored, values)
        else:
            raw_type = gguf.GGMLQuantizationType[quantised]
            writer.add_tensor(stored, _quantised(values, quantised), raw_dtype=raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _quantised(values: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    try:
        return np.array(gguf.quantize(values, gguf.GGMLQuantizationType[kind]))
    except NotImplementedError:
        return random_blocks(kind, *values.shape, spread=float(values.std()))


def interleave(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
