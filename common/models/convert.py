"""Converts a GGUF file to a Hugging Face folder: configuration, weights, tokeniser."""

import errno
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import torch

from sps2.common.errors import Invalid
from sps2.common.model.config import read
from sps2.common.model.llama import shapes
from sps2.common.models import Progress, gguf_tokens

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

_SAFETENSORS_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
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


_SAMPLING = {
    "temp": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""Keys of GGUF after `general.sampling.`, and their names in generation_config.json."""


def convert(
    source: Path,
    folder: Path,
    progress: Progress,
    sampling: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Convert `source` (.gguf) into the existing empty `folder`.

    Args:
        sampling: the makers' recommendations, by the names of generation_config.json, for what
            the file does not have.

    Raises:
        Invalid: the file is broken or a part of several, or its architecture, rope scaling or
            tokeniser is unsupported.
        OSError: the folder cannot be written.
    """
    reader = _open(source)
    try:
        fields = {name: field.contents() for name, field in reader.fields.items()}
        config = _config(fields, reader)
        tokenizer = gguf_tokens.build(fields)
        _write_tokenizer(folder, fields, config, tokenizer)
        drawn = {**sampling, **_sampling(fields)}
        how = {"do_sample": True} if drawn else {}
        _write_json(folder / "generation_config.json", _special_ids(fields) | how | drawn)
        _write_json(folder / "config.json", config)
        _write_weights(folder / "model.safetensors", config, reader, progress)
    except Invalid as error:
        raise Invalid(f"{source}: {error}") from error
    except KeyError as error:
        raise Invalid(f"{source} lacks {error.args[0]!r}") from error
    except (ValueError, TypeError, IndexError, NotImplementedError) as error:
        raise Invalid(f"{source} cannot be converted: {error}") from error


class _Reader(gguf.GGUFReader):  # type: ignore[misc]
    """The library's reader, but reading past the end fails instead of giving short arrays."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > self.data.size:
            raise ValueError(f"it ends at byte {self.data.size}, byte {end} is needed")
        return super()._get(offset, dtype, count, override_order)


def _open(source: Path) -> Any:
    try:
        reader = _Reader(source)
        if "split.count" in reader.fields:
            part, parts = (int(reader.fields[f"split.{n}"].contents()) for n in ("no", "count"))
        else:
            part, parts = 0, 1
        if parts > 1:
            raise Invalid(
                f"{source} is part {part + 1} of {parts} of a model; join all parts to one file "
                "(`llama-gguf-split --merge` of llama.cpp does it) and give that"
            )
        architecture = reader.fields["general.architecture"].contents()
    except Invalid:
        raise
    except OSError as error:
        raise Invalid(f"cannot read {source}: {error.strerror}") from error
    except Exception as error:  # on garbage the reader raises anything
        raise Invalid(f"{source} is not a sound GGUF file: {error}") from error
    if architecture not in ARCHITECTURES:
        raise Invalid(
            f"{source}: architecture {architecture!r} is not supported; "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    return reader


def _config(fields: dict[str, Any], reader: Any) -> dict[str, Any]:
    kind = fields["general.architecture"]
    own = {name.removeprefix(f"{kind}."): value for name, value in fields.items()}
    if own.get("expert_count"):
        raise Invalid(f"a mixture of {own['expert_count']} experts ({kind}) is not supported")
    heads = own["attention.head_count"]
    hidden = own["embedding_length"]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    head_dim = own.get("attention.key_length") or own.get("rope.dimension_count")
    rope = _rope(own, tensors)
    config = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "hidden_size": hidden,
        "intermediate_size": own["feed_forward_length"],
        "num_hidden_layers": own["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": own.get("attention.head_count_kv", heads),
        "head_dim": head_dim or hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": own["context_length"],
        "rms_norm_eps": _decimal(own["attention.layer_norm_rms_epsilon"]),
        "rope_theta": rope["rope_theta"],
        "rope_parameters": rope,
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "dtype": _dtype_name(tensors["blk.0.attn_q.weight"].tensor_type.name),
    }
    if kind == "mistral":
        config["sliding_window"] = own.get("attention.sliding_window")
    if kind == "llama" and "blk.0.attn_q.bias" in tensors and not config["attention_bias"]:
        raise Invalid("a llama model with biases on q, k, v only is not supported")
    return config | _special_ids(fields)


def _rope(own: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": _decimal(own.get("rope.freq_base", 10_000.0)),
    }
    kind = own.get("rope.scaling.type", "none")
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": _decimal(own["rope.scaling.factor"])}
        if kind == "yarn":
            trained = own.get("rope.scaling.original_context_length", own["context_length"])
            rope["original_max_position_embeddings"] = trained
    elif kind != "none":
        raise Invalid(f"rope scaling {kind!r} is not supported; supported: linear, yarn, llama3")
    if "rope_freqs.weight" in tensors:
        rope |= _llama3(np.asarray(tensors["rope_freqs.weight"].data), rope["rope_theta"])
    return rope


def _llama3(divisors: np.ndarray[Any, Any], theta: float) -> dict[str, Any]:
    """Llama 3.1's scaling, which GGUF keeps as one divisor per frequency."""
    factor = _decimal(divisors.max())
    if factor == 1.0:
        return {}
    low, high, trained = 1.0, 4.0, 8192
    wavelengths = 2 * math.pi * theta ** (np.arange(divisors.size) / divisors.size)
    smooth = np.clip((trained / wavelengths - low) / (high - low), 0, 1)
    if not np.allclose(1 / ((1 - smooth) / factor + smooth), divisors, rtol=1e-3):
        raise Invalid("the rope frequencies of the GGUF file follow no known scaling")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": trained,
    }


def _decimal(value: float) -> float:
    """The short decimal that a float32 was written from, for example 1e-05."""
    return float(f"{float(value):.7g}")


def _dtype_name(kind: str) -> str:
    return {"F32": "float32", "F16": "float16"}.get(kind, "bfloat16")


def _special_ids(fields: dict[str, Any]) -> dict[str, Any]:
    names = {"bos": "bos_token_id", "padding": "pad_token_id"}
    ids = {
        target: fields[f"tokenizer.ggml.{name}_token_id"]
        for name, target in names.items()
        if f"tokenizer.ggml.{name}_token_id" in fields
    }
    ends = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends += gguf_tokens.ends(fields)
    found = list(dict.fromkeys(end for end in ends if end is not None))
    if found:
        ids["eos_token_id"] = found[0] if len(found) == 1 else found
    return ids


def _sampling(fields: dict[str, Any]) -> dict[str, float]:
    given = {name: fields.get(f"general.sampling.{key}") for key, name in _SAMPLING.items()}
    return {
        name: value if isinstance(value, int) else _decimal(value)
        for name, value in given.items()
        if value is not None
    }


def _write_tokenizer(
    folder: Path, fields: dict[str, Any], config: dict[str, Any], tokenizer: Any
) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    table: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
    }
    tokens = fields["tokenizer.ggml.tokens"]
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = fields.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            table[f"{name}_token"] = tokens[index]
    if "tokenizer.chat_template" in fields:
        table["chat_template"] = fields["tokenizer.chat_template"]
    _write_json(folder / "tokenizer_config.json", table)


def _write_weights(path: Path, config: dict[str, Any], reader: Any, progress: Progress) -> None:
    """Write a safetensors file, tensor by tensor, its data 64-byte aligned for bf16 gemv."""
    dtype: torch.dtype = getattr(torch, config["dtype"])
    stored = [tensor for tensor in reader.tensors if tensor.name != "rope_freqs.weight"]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    total = 0
    for tensor in stored:
        shape = [int(size) for size in reversed(tensor.shape)]
        size = math.prod(shape) * dtype.itemsize
        place = {"dtype": _SAFETENSORS_NAMES[dtype], "shape": shape}
        header[_name(tensor.name)] = place | {"data_offsets": [total, total + size]}
        total += size
    header |= {name: header[name] for name in shapes(read(path.parent))}  # KeyError: lacking
    if shutil.disk_usage(path.parent).free < total:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in stored:
            values = torch.from_numpy(_values(tensor, config)).to(dtype)
            file.write(values.view(torch.uint8).numpy().data)
            progress("converting", file.tell() - len(text) - 8, total)


def _values(stored: Any, config: dict[str, Any]) -> np.ndarray[Any, Any]:
    values = np.array(gguf.dequantize(stored.data, stored.tensor_type))
    kind = stored.name.split(".")[-2]
    if config["model_type"] == "llama" and kind in ("attn_q", "attn_k"):
        name = "num_attention_heads" if kind == "attn_q" else "num_key_value_heads"
        values = np.ascontiguousarray(_unpermute(values, config[name]))
    return values


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


def _write_json(path: Path, table: dict[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
