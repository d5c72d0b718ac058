"""Every bit of bfloat16 numbers comes back, in about two thirds of the bytes."""

import pytest
import torch
from torch import Tensor

from sps2.kernels import lossless, native


def same(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and torch.equal(x.view(torch.int16), y.view(torch.int16))


@pytest.fixture(params=["native", "torch"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(native, "built", False)


@pytest.mark.parametrize("shape", [(0, 3, 64), (1, 1, 1), (7, 2, 16), (33, 1, 8)])
def test_numbers_come_back(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape).bfloat16()
    assert same(lossless.decode(lossless.encode(x)), x)


def test_every_bit_pattern_comes_back() -> None:
    """NaNs with their bits, infinities, both zeros and denormals."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).view(1, 1, -1)
    x = x[..., ::16] if not native.built else x  # torch is slow
    assert same(lossless.decode(lossless.encode(x)), x)


def test_a_view_is_packed_as_its_copy() -> None:
    x = torch.randn(20, 4, 16).bfloat16()[3:, 1:3]
    assert torch.equal(lossless.encode(x), lossless.encode(x.clone()))


@pytest.mark.skipif(not native.built, reason="there are no C++ kernels")
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_normal_numbers_take_two_thirds(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "built", True)
    x = (torch.randn(512, 4, 64) * scale).bfloat16()
    assert len(lossless.encode(x)) < 0.68 * x.nbytes


def test_damaged_data_are_refused() -> None:
    data = lossless.encode(torch.randn(9, 2, 16).bfloat16())
    negative, huge = data.clone(), data.clone()
    negative[3], huge[6] = 255, 255
    for worse in (data[:5], data[:40], data[:-1], negative, huge, torch.cat((data, data))):
        with pytest.raises(ValueError, match=r"no packed|damaged|no entropy-coded"):
            lossless.decode(worse)


def test_other_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="x is float32, not bfloat16"):
        lossless.encode(torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match="x has shape"):
        lossless.encode(torch.zeros(3).bfloat16())
