"""The layers and weights of the stages of a model."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from sps2.common.errors import Invalid
from sps2.common.model.config import ModelConfig, Rope
from sps2.common.model.stage import stage_of

CONFIG = ModelConfig(
    family="llama",
    vocab_size=100,
    hidden_size=64,
    intermediate_size=96,
    layers=7,
    heads=4,
    kv_heads=2,
    head_dim=16,
    max_context=512,
    norm_eps=1e-5,
    rope=Rope(),
    windows=(None, 8) * 3 + (None,),
)


def sizes(config: ModelConfig, size: int) -> Sequence[int]:
    spans = [stage_of(config, rank, size).layers for rank in range(size)]
    assert [each.stop for each in spans] == [*(each.start for each in spans[1:]), config.layers]
    return [each.tokens for each in spans]


def test_every_layer_is_in_one_stage_and_the_embedding_counts() -> None:
    assert sizes(CONFIG, 1) == [7]
    assert sizes(CONFIG, 2) == [3, 4]
    assert sizes(CONFIG, 7) == [1] * 7
    layer = CONFIG.products // 7
    large = replace(CONFIG, vocab_size=2 * layer // 64, tied=True)  # as two layers
    assert sizes(large, 2) == [3, 4]
    assert sizes(large, 3) == [1, 3, 3]
    assert sizes(replace(large, tied=False), 3) == [1, 3, 3]
    assert sizes(replace(CONFIG, vocab_size=1_000_000), 3) == [1, 3, 3]


def test_a_stage_has_its_layers_windows_and_weights() -> None:
    first, last = (stage_of(CONFIG, rank, 2) for rank in range(2))
    assert last.of(CONFIG).windows == CONFIG.windows[3:]
    assert last.of(CONFIG).layers == 4
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    names += [f"model.layers.{index}.mlp.up_proj.weight" for index in range(7)]
    weights = dict(zip(names, map(torch.tensor, range(10)), strict=True))
    assert [*first.weights(weights).values()] == [0, 1, 2, 3, 4, 5]
    assert last.weights(weights) == {
        "model.norm.weight": 1,
        **{f"model.layers.{index}.mlp.up_proj.weight": 6 + index for index in range(4)},
    }


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(Invalid, match=r"pp 8 cannot split 7 layers.*possible are 1 to 7"):
        stage_of(CONFIG, 0, 8)
