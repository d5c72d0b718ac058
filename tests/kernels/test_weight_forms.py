"""Weights in blocks of every form: what they hold, and products with them."""

import pytest
import torch

from sps2.kernels import native
from sps2.kernels.native import layer
from sps2.kernels.weight_forms import FORMS, Form, Parts, packed

OUTPUTS, BLOCKS = 37, 3


def parts(form: Form, outputs: int = OUTPUTS, blocks: int = BLOCKS) -> Parts:
    torch.manual_seed(form.number)
    counts = (outputs, blocks, form.scales)
    nested = form.scales > 1
    return Parts(
        torch.randint(0, 1 << form.bits, (outputs, blocks * form.inputs), dtype=torch.uint8),
        (torch.randn(outputs, blocks) / 100).half(),
        (torch.randn(outputs, blocks) / 100).half() if form.minimum else None,
        torch.randint(-128, 128, counts, dtype=torch.int8) if nested else None,
        torch.randint(0, 64, counts, dtype=torch.int8) if nested and form.minimum else None,
    )


def numbers(form: Form, of: Parts) -> torch.Tensor:
    """What the parts stand for, by the words of `Form`: [outputs, inputs] float64."""
    codes = of.codes.unflatten(1, (of.scale.shape[1], form.scales, form.scaled))
    levels = torch.tensor(form.levels or range(-form.offset, 256 - form.offset)).double()
    scale = of.scale.double()[..., None, None]
    values = levels[codes.long()] * scale
    if of.scales is not None:
        values *= of.scales.double()[..., None]
    if of.minimum is not None:
        least = of.minimum.double()[..., None, None]
        values += least if of.minimums is None else least * of.minimums.double()[..., None]
    return values.flatten(1)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_numbers_are_exact(form: Form) -> None:
    made = parts(form)
    weight = packed(form, made)
    assert weight.shape == (OUTPUTS, BLOCKS * form.inputs)
    assert weight.blocks.shape == (3, BLOCKS, form.size)
    exact = numbers(form, made).float()
    assert torch.equal(weight.restored(torch.float32), exact)
    assert torch.equal(weight.restored(torch.bfloat16), exact.bfloat16())
    rows = torch.tensor([36, 0, 17, 17])
    assert torch.equal(weight.take(rows, torch.float32), exact[rows])


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("dtype", native.FLOATING)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_products(level: int, form: Form, dtype: torch.dtype, rows: int) -> None:
    made = parts(form)
    weight = packed(form, made)
    assert layer.serves(dtype, weight) == bool(level)
    if not level:
        return  # torch takes the numbers, which `restored` gives
    x, bias = torch.randn(rows, weight.shape[1]).to(dtype), torch.randn(OUTPUTS).to(dtype)
    exact = numbers(form, made)
    found = layer.product(x, (weight, bias))
    expected = x.double() @ exact.t() + bias.double()
    sizes = x.double().abs() @ exact.abs().t() + bias.double().abs()
    assert ((found - expected).abs() / sizes).max() < 1e-5


@pytest.mark.parametrize("name", ["Q4_0", "Q6_K"])
def test_parts_of_a_weight(name: str) -> None:
    form = FORMS[name]
    weight = packed(form, parts(form))
    whole = weight.restored(torch.float32)
    assert torch.equal(weight.rows(16, 37).restored(torch.float32), whole[16:])
    inputs = form.inputs
    some = weight.columns(inputs, 3 * inputs)
    assert torch.equal(some.restored(torch.float32), whole[:, inputs:])
    assert not weight.divides_rows(8, 16)
    assert not weight.divides_columns(0, inputs // 2)


def test_memory_is_that_of_the_bits() -> None:
    sizes = {name: form.bits_per_weight for name, form in FORMS.items()}
    assert sizes == {
        **{"Q4_0": 4.5, "Q4_1": 5.0, "Q5_0": 5.5, "Q5_1": 6.0, "Q8_0": 8.5, "int8": 9.0},
        **{"Q2_K": 5.125, "Q3_K": 4.5625, "Q4_K": 4.625, "Q5_K": 5.625, "Q6_K": 6.5625},
        **{"IQ4_NL": 4.5, "IQ4_XS": 4.3125},
    }
    weight = packed(FORMS["Q4_K"], parts(FORMS["Q4_K"], 32, 2))
    assert weight.blocks.numel() * 8 == 32 * 512 * sizes["Q4_K"]
