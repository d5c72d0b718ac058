"""Blocks that are kept have the numbers that llama.cpp's own reader gives."""

import gguf
import pytest
import torch

from sps2.common.models import gguf_blocks
from sps2.kernels import native

from ...gguf_blocks import HALVES, random_blocks

KINDS = sorted(HALVES)


@pytest.mark.parametrize("level", range(native.level + 1))
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_of_the_file(kind: str, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "level", level)
    raw = random_blocks(kind, 37, 512)
    expected = torch.from_numpy(gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]))
    weight = gguf_blocks.kept(kind, torch.from_numpy(raw))
    assert weight.form == gguf_blocks.kept_form(kind)
    assert torch.equal(weight.restored(torch.float32), expected)


def test_which_types_are_kept() -> None:
    assert [kind.name for kind in gguf.GGMLQuantizationType if gguf_blocks.is_kept(kind.name)] == [
        *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
        *("IQ4_NL", "IQ4_XS"),
    ]


def test_memory_is_that_of_the_file_and_little_more() -> None:
    for kind in KINDS:
        beside, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        more = gguf_blocks.kept_form(kind).bits_per_weight / (size * 8 / beside)
        assert more < (2 if kind in ("Q2_K", "Q3_K") else 1.03), kind
