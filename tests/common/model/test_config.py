"""config.json of every generation is read as transformers reads it, the rest refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from sps2.common.errors import Invalid
from sps2.common.model.config import ModelConfig, Rope, read

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": [2, 5],
}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
WINDOW = {"use_sliding_window": True, "sliding_window": 16}


def parse(folder: Path, table: object) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(table))
    return read(folder)


def test_reads_the_shape(tmp_path: Path) -> None:
    config = parse(tmp_path, LLAMA)
    assert (config.layers, config.heads, config.kv_heads, config.head_dim) == (4, 8, 2, 8)
    assert config.max_context == 256
    assert config.eos_ids == (2, 5)
    assert config.scale == 8**-0.5
    assert config.kv_bytes(2) == 2 * 4 * 2 * 8 * 2
    assert {config.qkv_bias, config.qk_norm, config.tied} == {False}


def test_model_type_alone_will_do(tmp_path: Path) -> None:
    table = {name: value for name, value in LLAMA.items() if name != "architectures"}
    assert parse(tmp_path, table).family == "llama"


@pytest.mark.parametrize(
    "table",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e5},
        {"rope_scaling": {"rope_type": "linear", "factor": 2}, "rope_theta": 500000},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 5e5},
    ],
)
def test_both_spellings_of_rope(tmp_path: Path, table: dict[str, Any]) -> None:
    assert parse(tmp_path, LLAMA | table).rope == Rope(
        "linear", 5e5, 2.0, original_max_position_embeddings=256
    )


def test_rope_defaults(tmp_path: Path) -> None:
    assert parse(tmp_path, LLAMA | {"rope_scaling": None}).rope.rope_theta == 10_000
    yarn = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 64}
    assert parse(tmp_path, LLAMA | {"rope_scaling": yarn}).rope.factor == 4.0


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 1.5}, 384),
        ({"rope_type": "linear", "factor": 2.0}, 256),
        (None, 256),
    ],
)
def test_yarn_extends_the_context(
    tmp_path: Path, scaling: dict[str, Any] | None, context: int
) -> None:
    """By the factor, as the cards of Qwen2.5 and Qwen3 tell to set it."""
    assert parse(tmp_path, QWEN2 | {"rope_scaling": scaling}).max_context == context


@pytest.mark.parametrize(
    "table",
    [
        LLAMA | {"sliding_window": 16},
        MISTRAL | {"sliding_window": 16},
        MISTRAL | {"sliding_window": None},
        MISTRAL,
        QWEN2 | {"sliding_window": 16},
        QWEN2 | WINDOW,
        QWEN2 | WINDOW | {"max_window_layers": 1},
        QWEN3 | WINDOW | {"layer_types": ["full_attention", "sliding_attention"] * 2},
    ],
)
def test_windows_and_head_dim_are_transformers_own(tmp_path: Path, table: dict[str, Any]) -> None:
    config = parse(tmp_path, table)
    theirs = AutoConfig.from_pretrained(tmp_path)
    window = getattr(theirs, "sliding_window", None) if table["model_type"] != "llama" else None
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * 4
    expected = [window if kind == "sliding_attention" else None for kind in kinds]
    assert [config.window(layer) for layer in range(4)] == expected
    assert config.head_dim == (getattr(theirs, "head_dim", None) or 8)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, ["MixtralForCausalLM", "LlamaForCausalLM"]),
        ({"architectures": [], "model_type": "gpt2"}, ["gpt2", "Qwen3ForCausalLM"]),
        ({"rope_scaling": {"type": "longrope", "factor": 2}}, ["longrope", "yarn"]),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2}}, ["dynamic", "llama3"]),
        ({"rope_scaling": {"type": "linear"}}, ["factor"]),
        ({"rope_scaling": {"type": "llama3", "factor": 8}}, ["low_freq_factor"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["gptq", "bfloat16"]),
        ({"hidden_act": "gelu"}, ["gelu", "silu"]),
        ({"torch_dtype": "float8_e4m3fn"}, ["float8_e4m3fn", "float32"]),
        ({"hidden_size": "big"}, ["config.json"]),
        ({"hidden_size": None}, ["config.json"]),
        ({"num_attention_heads": 0}, ["config.json"]),
        ({"num_key_value_heads": 3}, ["multiple of KV heads"]),
        ({"vocab_size": -1.5}, ["config.json"]),
        ({"quantization_config": "int4"}, ["int4", "bfloat16"]),
        ({"num_hidden_layers": 10**30}, ["config.json", "layers"]),
        ({"rope_scaling": {"type": "yarn", "factor": 1e999}}, ["config.json"]),
        ({"rope_scaling": "yarn"}, ["config.json"]),
    ],
)
def test_refuses_by_name(tmp_path: Path, table: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(Invalid) as caught:
        parse(tmp_path, LLAMA | table)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "max_position_embeddings"])
def test_names_what_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(Invalid, match=name):
        parse(tmp_path, {key: value for key, value in LLAMA.items() if key != name})


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"cannot read .*config\.json"):
        read(tmp_path)
    (tmp_path / "config.json").write_bytes(b'{"hidden_size": \xff')
    with pytest.raises(Invalid, match="not valid JSON"):
        read(tmp_path)
    with pytest.raises(Invalid, match="not a JSON object"):
        parse(tmp_path, [1])


def test_json_that_nests_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(Invalid, match=r"config\.json is not valid JSON"):
        read(tmp_path)
