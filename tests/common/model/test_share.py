"""What the processes of a shard have of a model: equal parts, or a refusal that says what works."""

from dataclasses import replace

import pytest
import torch

from sps2.common.errors import Invalid
from sps2.common.model.config import ModelConfig, Rope
from sps2.common.model.share import Share, require_quantisable, share_of
from sps2.common.model.tensor_names import shapes
from sps2.common.model.weights import part_of
from sps2.common.spans import Span

SMOLLM2 = ModelConfig(
    family="llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    layers=1,
    heads=9,
    kv_heads=3,
    head_dim=64,
    max_context=8192,
    norm_eps=1e-5,
    rope=Rope(),
    windows=(None,),
    output_bias=True,
)


def test_shares_are_consecutive_and_equal() -> None:
    assert [Share(rank, 3).of(9) for rank in range(3)] == [Span(0, 3), Span(3, 6), Span(6, 9)]


def test_a_share_has_its_part_of_heads_and_mlp() -> None:
    share = share_of(SMOLLM2, 3)
    assert (share.heads, share.kv_heads, share.intermediate_size) == (3, 1, 512)
    assert (share.hidden_size, share.vocab_size) == (576, 49152)


def test_what_cannot_be_split_is_refused_with_what_can() -> None:
    with pytest.raises(Invalid, match=r"tp 2 cannot split 9 heads and 3 KV heads.* are 1, 3$"):
        share_of(SMOLLM2, 2)
    with pytest.raises(Invalid, match=r"split 49153 tokens of vocabulary evenly.* are 1$"):
        share_of(replace(SMOLLM2, vocab_size=49153), 3)
    with pytest.raises(Invalid, match=r"split 2 KV heads evenly .*possible are 1, 2$"):
        share_of(replace(SMOLLM2, heads=8, kv_heads=2), 4)


def test_parts_put_together_are_the_whole() -> None:
    config = replace(SMOLLM2, vocab_size=6, hidden_size=18, intermediate_size=12)
    for name, shape in shapes(config).items():
        whole = torch.randn(shape)
        parts = [part_of(whole, name, Share(rank, 3)) for rank in range(3)]
        if "o_proj.bias" in name:
            assert torch.equal(sum(parts), whole)
        elif "o_proj" in name or "down_proj" in name:
            assert torch.equal(torch.cat(parts, 1), whole)
        elif "norm" in name or "embed" in name:
            assert all(part is whole for part in parts)
        else:
            assert torch.equal(torch.cat(parts), whole)
            assert all(part.untyped_storage() == whole.untyped_storage() for part in parts)


@pytest.mark.parametrize(
    ("changed", "size", "reason"),
    [
        ({"hidden_size": 560}, 1, "multiples of 32, and hidden_size is 560; use --quantize none"),
        ({"intermediate_size": 1504}, 1, None),
        ({"intermediate_size": 1504}, 3, "intermediate_size is 1504 / tp 3; use another tp"),
        ({"kv_heads": 3, "head_dim": 32}, 3, None),
        ({"vocab_size": 49155}, 1, None),
        ({"vocab_size": 49155}, 3, "multiples of 16, and vocab_size is 49155 / tp 3"),
    ],
)
def test_what_cannot_be_quantised_is_refused(
    changed: dict[str, int], size: int, reason: str | None
) -> None:
    config = replace(SMOLLM2, **changed)
    if reason is None:
        require_quantisable(config, "int4", size)
        return
    with pytest.raises(Invalid, match=reason):
        require_quantisable(config, "int4", size)
