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
    """Writes a Hugging Face folder as GGUF; see `_write`."""
    return _write


def _write(
    source: Path, path: Path, architecture: str, extra: Callable[[Any], object] = lambda w: None
) -> Path:
    """`extra` adds to the writer what the plain file lacks, or what should not be there."""
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
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def interleave(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
