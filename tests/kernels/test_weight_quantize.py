"""Weights in 4 and 8 bits: what they hold, and products with them."""

import pytest
import torch

from sps2.kernels import native
from sps2.kernels.native import layer
from sps2.kernels.weight_forms import BESIDE, GROUP, QuantisedWeight
from sps2.kernels.weight_quantize import Bits, quantise

SHAPES = [(16, 32), (48, 96), (1, 32), (37, 64), (200, 160), (64, 576)]


def made(outputs: int, inputs: int, bits: Bits) -> tuple[torch.Tensor, QuantisedWeight]:
    weight = torch.randn(outputs, inputs) * torch.logspace(-2, 1, outputs)[:, None]
    return weight, quantise(weight, bits)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_weights_come_back_within_half_a_step(outputs: int, inputs: int, bits: Bits) -> None:
    weight, quantised = made(outputs, inputs, bits)
    assert quantised.shape == (outputs, inputs)
    assert quantised.bits == bits
    groups = weight.unflatten(1, (-1, GROUP))
    back = quantised.restored(torch.float32).unflatten(1, (-1, GROUP))
    span = groups.amax(-1) - groups.amin(-1)
    worst = (groups - back).abs().amax(-1) / span * (2**bits - 1)
    assert worst.max() < 1.3  # half a step, more where a value far from the others was cut off
    error = ((groups - back).square().mean(-1).sqrt() / span * (2**bits - 1)).mean()
    assert error < 0.32  # uniform within a step: 0.29


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", native.FLOATING)
def test_numbers_are_the_same_on_every_cpu(
    bits: Bits, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, quantised = made(200, 96, bits)
    here = quantised.restored(dtype)
    monkeypatch.setattr(native, "level", 0)
    torch.testing.assert_close(here, quantised.restored(dtype))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", native.FLOATING)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16])
def test_products(
    level: int, rows: int, outputs: int, inputs: int, dtype: torch.dtype, bits: Bits
) -> None:
    _, quantised = made(outputs, inputs, bits)
    assert layer.serves(dtype, quantised) == bool(level)
    if not level:
        return  # torch takes the numbers, which `restored` gives
    x = torch.randn(rows, inputs).to(dtype)
    bias = torch.randn(outputs).to(dtype)
    numbers = quantised.restored(torch.float32).double()
    expected = x.double() @ numbers.t() + bias.double()
    found = layer.product(x, (quantised, bias))
    sizes = x.double().abs() @ numbers.abs().t() + bias.double().abs()
    assert ((found - expected).abs() / sizes).max() < 1e-5


def test_codes_of_a_4_bit_format_are_found_again() -> None:
    """What Q4_1 (all codes used) and Q4_0 (16 symmetric ones, few used) make, in bfloat16."""
    codes = torch.randint(0, 16, (64, 8, GROUP))
    codes[..., 0], codes[..., 1] = 0, 15
    scale = torch.rand(64, 8, 1) / 50 + 0.001
    q4_1 = codes * scale - 0.1 * torch.rand(64, 8, 1)
    q4_0 = (torch.randn(64, 8, GROUP) * 3).round().clamp(-8, 7) * scale
    for exact in (q4_1, q4_0):
        stored = exact.flatten(1).bfloat16()
        back = quantise(stored, 4).restored(torch.float32).unflatten(1, (-1, GROUP))
        worst = exact.abs().amax(-1, keepdim=True)
        assert ((back - exact).abs() / worst).max() < 2**-8  # bfloat16's own rounding: 2^-9


def test_parts_are_those_of_the_numbers() -> None:
    _, quantised = made(72, 160, 4)
    whole = quantised.restored(torch.float32)
    assert torch.equal(quantised.rows(16, 48).restored(torch.float32), whole[16:48])
    assert torch.equal(quantised.rows(64, 72).restored(torch.float32), whole[64:])
    assert torch.equal(quantised.columns(32, 128).restored(torch.float32), whole[:, 32:128])


def test_groups_without_a_span_are_exact() -> None:
    weight = torch.tensor([0.0, 0.5, -3.0])[:, None].expand(3, 2 * GROUP)
    for bits in (4, 8):
        assert torch.equal(quantise(weight, bits).restored(torch.float32), weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_weights_that_do_not_fit_are_refused(value: float) -> None:
    weight = torch.zeros(BESIDE, GROUP)
    weight[3, 4] = value
    with pytest.raises(ValueError, match="float16"):
        quantise(weight, 8)
