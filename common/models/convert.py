"""Converts a GGUF file to a Hugging Face folder: configuration, weights, tokeniser."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from sps2.common.errors import Invalid
from sps2.common.model.config import BLOCKS, read
from sps2.common.model.tensor_names import shapes
from sps2.common.models import Progress, gguf_tokens, gguf_weights
from sps2.common.models.gguf_files import GgufModel, open_model

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
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
    *,
    keep_blocks: bool = True,
) -> None:
    """Convert `source` (.gguf) into the existing empty `folder`.

    Args:
        source: a file, or any part of a model in several files that are beside it.
        sampling: the makers' recommendations, by the names of generation_config.json, for what
            the file does not have.
        keep_blocks: quantised weights stay at their bits, if the kernels multiply from their
            blocks; else they become numbers, as other programs read them.

    Raises:
        Invalid: the file is broken, a part is missing, or its architecture, rope scaling or
            tokeniser is unsupported.
        OSError: the folder cannot be written.
    """
    try:
        model = open_model(source)
        _require_supported(model)
        fields = model.fields
        kept = gguf_weights.kept_types(model.tensors) if keep_blocks else {}
        config = _config(model) | _quantisation(kept)
        tokenizer = gguf_tokens.build(fields)
        _write_tokenizer(folder, fields, config, tokenizer)
        drawn = {**sampling, **_sampling(fields)}
        how = {"do_sample": True} if drawn else {}
        _write_json(folder / "generation_config.json", _special_ids(fields) | how | drawn)
        _write_json(folder / "config.json", config)
        expected = shapes(read(folder))
        path = folder / "model.safetensors"
        gguf_weights.write(path, config, model.tensors, kept, expected, progress)
    except Invalid as error:
        raise Invalid(f"{source}: {error}") from error
    except KeyError as error:
        raise Invalid(f"{source} lacks {error.args[0]!r}") from error
    except (
        ArithmeticError,
        AttributeError,
        IndexError,
        NotImplementedError,
        TypeError,
        ValueError,
    ) as error:
        raise Invalid(f"{source} cannot be converted: {error}") from error


def _require_supported(model: GgufModel) -> None:
    architecture = model.fields["general.architecture"]
    if architecture not in ARCHITECTURES:
        raise Invalid(
            f"architecture {architecture!r} is not supported; "
            f"supported are {', '.join(ARCHITECTURES)}"
        )


def _quantisation(kept: Mapping[str, str]) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": BLOCKS, "types": dict(kept)}} if kept else {}


def _config(model: GgufModel) -> dict[str, Any]:
    fields, tensors = model
    kind = fields["general.architecture"]
    own = {name.removeprefix(f"{kind}."): value for name, value in fields.items()}
    if own.get("expert_count"):
        raise Invalid(f"a mixture of {own['expert_count']} experts ({kind}) is not supported")
    heads = own["attention.head_count"]
    hidden = own["embedding_length"]
    head_dim = own.get("attention.key_length") or own.get("rope.dimension_count")
    rope = _rope(own, tensors)
    window = own.get("attention.sliding_window") if kind in ("llama", "mistral") else None
    config = {
        "architectures": [ARCHITECTURES["mistral" if window else kind]],
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
    if window or kind == "mistral":
        config["sliding_window"] = window
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


def _write_json(path: Path, table: dict[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
