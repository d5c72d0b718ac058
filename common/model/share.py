"""The share of a model that one process of a tensor-parallel shard has; imports no torch."""

from dataclasses import replace
from typing import Literal, NamedTuple

from sps2.common.errors import Invalid
from sps2.common.model.config import ModelConfig
from sps2.common.spans import Span

Quantize = Literal["none", "int8", "int4"]

GROUP, SIDE = 32, 16
"""In quantised weights: inputs that share a scale, and outputs that are stored side by side."""

ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
"""Weights that are split by outputs."""
COLUMNS = ("o_proj", "down_proj")
"""Weights that are split by inputs: the outputs of all shares are summed."""


class Share(NamedTuple):
    """One of `size` equal parts of heads, of the MLP's inner size, and of the vocabulary."""

    rank: int
    size: int

    def of(self, whole: int) -> Span:
        """This share's part of `whole` rows or columns."""
        part = whole // self.size
        return Span(self.rank * part, (self.rank + 1) * part)


WHOLE = Share(0, 1)


def share_of(config: ModelConfig, size: int) -> ModelConfig:
    """The shape of one of `size` shares; `vocab_size` stays whole, as the embedding does.

    Raises:
        Invalid: the model cannot be split into `size` equal parts; the message says what is
            possible.
    """
    parts = {
        "heads": config.heads,
        "KV heads": config.kv_heads,
        "MLP rows": config.intermediate_size,
        "tokens of vocabulary": config.vocab_size,
    }
    if any(count % size for count in parts.values()):
        uneven = " and ".join(f"{n} {name}" for name, n in parts.items() if n % size)
        sizes = range(1, config.kv_heads + 1)
        possible = [str(each) for each in sizes if not any(n % each for n in parts.values())]
        raise Invalid(
            f"tp {size} cannot split {uneven} evenly (nothing is repeated or padded); possible are "
            f"{', '.join(possible)}"
        )
    return replace(
        config,
        heads=config.heads // size,
        kv_heads=config.kv_heads // size,
        intermediate_size=config.intermediate_size // size,
    )


def require_quantisable(config: ModelConfig, how: Quantize, size: int = 1) -> None:
    """Check that a model's weights, in `size` shares, can be quantised.

    Raises:
        Invalid: they cannot; the message says what is possible.
    """
    inputs = {
        "hidden_size": (config.hidden_size, 1),
        "heads * head_dim": (config.heads * config.head_dim, size),
        "intermediate_size": (config.intermediate_size, size),
    }
    outputs = {
        "kv_heads * head_dim": (config.kv_heads * config.head_dim, size),
        "vocab_size": (config.vocab_size, size),
    }
    for step, sizes in ((GROUP, inputs), (SIDE if size > 1 else 1, outputs)):
        for name, (whole, parts) in sizes.items():
            if whole % (parts * step):
                split = f" / tp {parts}" if parts > 1 else ""
                advice = "another tp or --quantize none" if size > 1 else "--quantize none"
                raise Invalid(
                    f"--quantize {how} needs multiples of {step}, and {name} is {whole}{split}; "
                    f"use {advice}"
                )
