"""What the served model is, for clients that list models."""

from pathlib import Path

import msgspec

from sps2.common.errors import Invalid
from sps2.common.model.config import ModelConfig, block_types, stored_as
from sps2.common.models import weight_files
from sps2.common.text.tokens import Tokenizer


class Card(msgspec.Struct, frozen=True):
    """The served model's kind and size."""

    family: str = ""
    """Its architecture, such as `llama`."""
    parameters: int = 0
    file_bytes: int = 0
    """Bytes of its files of weights."""
    weights: str = ""
    """The type in which its matrices are computed, such as `bfloat16` or `int8`."""
    template: str = ""
    """Its chat template, in Jinja; empty if it has none."""


def card_of(
    folder: Path, config: ModelConfig, tokenizer: Tokenizer, dtype: str, quantize: str
) -> Card:
    """The card of the model in `folder`.

    Args:
        dtype: as configured.
        quantize: as configured; `none` computes in `dtype`.
    """
    try:
        template = tokenizer.template.source
    except Invalid:
        template = ""
    stored = stored_as(folder, config) if dtype == "auto" or block_types(folder) else dtype
    return Card(
        family=config.family,
        parameters=parameters_of(config),
        file_bytes=sum(path.stat().st_size for path in weight_files(folder)),
        weights=stored if quantize == "none" else quantize,
        template=template,
    )


def parameters_of(config: ModelConfig) -> int:
    """How many parameters a model has, biases included."""
    hidden, heads, kv = config.hidden_size, config.heads, config.kv_heads
    inner, size = config.intermediate_size, config.head_dim
    layer = hidden * size * (2 * heads + 2 * kv) + 3 * hidden * inner + 2 * hidden
    layer += config.qkv_bias * size * (heads + 2 * kv) + config.output_bias * hidden
    layer += config.mlp_bias * (2 * inner + hidden) + config.qk_norm * 2 * size
    return layer * config.layers + config.vocab_size * hidden * (2 - config.tied) + hidden
