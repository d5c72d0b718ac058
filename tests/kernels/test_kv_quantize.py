"""Quantised blocks: what a wire can carry."""

import pytest
import torch

from sps2.kernels.contracts import BLOCK, Bits
from sps2.kernels.kv_quantize import blocks_of, pack, pack_all, unpack, unpack_all


@pytest.mark.parametrize("tokens", [1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_any_number_of_tokens_is_packed_contiguously(tokens: int) -> None:
    k, v = torch.randn(2, tokens, 3, 16)
    packed = pack_all(k, v)
    assert all(each.is_contiguous() for each in packed)
    for there, here in zip(unpack_all(packed, tokens, k.dtype), (k, v), strict=True):
        torch.testing.assert_close(there, here, atol=0.03, rtol=0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [10, 3 * BLOCK, 3 * BLOCK + 7])
def test_chosen_blocks_come_back_within_half_a_step(
    bits: Bits, dtype: torch.dtype, tokens: int
) -> None:
    torch.manual_seed(tokens)
    k, v = (torch.randn(tokens, 4, 64) * 3 + 1).to(dtype), torch.randn(tokens, 4, 64).to(dtype)
    which = torch.rand(4, -(-tokens // BLOCK)) < 0.6
    packed = pack(k, v, which, bits)
    assert packed.k.shape == (int(which.sum()), BLOCK, 64 * bits // 8)
    for there, here, scale, axis in zip(
        unpack(packed, dtype), (k, v), (packed.k_scale, packed.v_scale), (1, 2), strict=True
    ):
        step = scale[:, 1].float().unsqueeze(axis)
        wrong = (there.float() - blocks_of(here)[which].float()).abs()
        rounding = 0 if dtype == torch.float32 else 0.03
        assert bool(
            (wrong <= step * 0.51 + scale[:, 0].float().abs().amax() / 1e3 + rounding).all()
        )


def test_equal_numbers_and_no_blocks() -> None:
    k = torch.full((BLOCK, 2, 64), 3.0)
    packed = pack(k, -k, torch.ones(2, 1, dtype=torch.bool))
    for there, value in zip(unpack(packed, k.dtype), (3.0, -3.0), strict=True):
        assert bool((there == value).all())
    none = pack(k, k, torch.zeros(2, 1, dtype=torch.bool))
    assert unpack(none, k.dtype)[0].shape == (0, BLOCK, 64)
