"""What is launched at start follows from the model, and every launch works."""

import logging
from types import SimpleNamespace

import pytest
import torch

from ..interpreted import why_not

if why := why_not():
    pytest.skip(why, allow_module_level=True)

import triton

from sps2.kernels.gpu import launches
from sps2.services.gpu_start import launched_by

from .world import tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("eight_bits", [False, True])
def test_every_launch_of_a_model_works(eight_bits: bool) -> None:
    model = tiny_model(window=40)
    config = model.config
    shape = launched_by(model, eight_bits)
    assert (shape.heads, shape.kv_heads) == (config.heads, config.kv_heads)
    assert shape.windowed == (False, True)
    assert launches.launch_all(shape, CPU)[0] > 20


def test_a_kernel_that_is_compiled_later_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", None)
    launches.log_later_ones()
    with caplog.at_level(logging.WARNING):
        triton.knobs.runtime.jit_post_compile_hook(
            key="", repr="", fn=SimpleNamespace(name="_flash"), already_compiled=False
        )
    assert "_flash was compiled while serving" in caplog.text
