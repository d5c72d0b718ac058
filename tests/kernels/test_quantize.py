"""Quantised blocks: what a wire can carry."""

import pytest
import torch

from sps2.kernels.quantize import BLOCK, pack_all, unpack_all


@pytest.mark.parametrize("tokens", [1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_any_number_of_tokens_is_packed_contiguously(tokens: int) -> None:
    k, v = torch.randn(2, tokens, 3, 16)
    packed = pack_all(k, v)
    assert all(each.is_contiguous() for each in packed)
    for there, here in zip(unpack_all(packed, tokens, k.dtype), (k, v), strict=True):
        torch.testing.assert_close(there, here, atol=0.03, rtol=0)
