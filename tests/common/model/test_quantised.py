"""Quantised models: what is kept beside the checkpoint, and that they compute what it says."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sps2.common.errors import Invalid
from sps2.common.model.config import read
from sps2.common.model.llama import Llama
from sps2.common.model.local import LocalAttention
from sps2.common.model.quantised import load as load_levels
from sps2.common.model.quantised import part_of
from sps2.common.model.share import Quantize, Share
from sps2.common.model.tensor_names import EMBEDDING, HEAD
from sps2.common.model.weights import load
from sps2.common.models.convert import convert
from sps2.kernels import native

Checkpoint = Callable[[str], Path]
FAMILIES = ["llama2", "qwen2", "qwen3"]


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("qwen3"), tmp_path / "model"))


def kept(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.glob("quantised/int*")]


async def logits(model: Llama, tokens: int) -> torch.Tensor:
    ids = torch.arange(tokens) * 7 % model.config.vocab_size
    positions = torch.arange(tokens)
    hidden = await model.forward(ids, positions, LocalAttention(model.config, positions))
    return model.logits(hidden)


@pytest.mark.parametrize("how", ["int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [1, 5, 40])
async def test_a_quantised_model_computes_with_the_numbers_that_it_has(
    checkpoint: Checkpoint, tmp_path: Path, family: str, how: Quantize, tokens: int
) -> None:
    folder = Path(shutil.copytree(checkpoint(family), tmp_path / "model"))
    stored = load_file(folder / "model.safetensors")
    levels = load_levels(folder, read(folder), stored, how)
    assert {level.bits for level in levels.values()} == ({8} if how == "int8" else {4, 8})
    numbers = {name: level.restored(torch.float32) for name, level in levels.items()}
    dense = Llama(read(folder), stored | {k: v.contiguous() for k, v in numbers.items()})
    found = await logits(load(folder, "float32", quantize=how), tokens)
    torch.testing.assert_close(found, await logits(dense, tokens), atol=2e-3, rtol=1e-3)


async def test_without_the_kernels_it_is_the_same_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await logits(load(folder, "float32", quantize="int4"), 3)
    monkeypatch.setattr(native, "level", 0)
    plain = await logits(load(folder, "float32", quantize="int4"), 3)
    torch.testing.assert_close(found, plain, atol=2e-3, rtol=1e-3)


def test_it_is_made_once_and_anew_for_other_weights(folder: Path) -> None:
    load(folder, quantize="int4")
    (name,) = kept(folder)
    made = (folder / name).stat()
    assert made.st_mode == (folder / "model.safetensors").stat().st_mode
    load(folder, quantize="int4")
    assert (folder / name).stat().st_mtime_ns == made.st_mtime_ns

    tensors = load_file(folder / "model.safetensors")
    save_file({key: 2 * value for key, value in tensors.items()}, folder / "model.safetensors")
    load(folder, quantize="int4")
    (other,) = kept(folder)
    assert other != name
    load(folder, quantize="int8")
    assert len(kept(folder)) == 2


def test_the_embedding_stays_as_it_is(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    config = read(folder)
    assert config.tied
    levels = load_levels(folder, config, stored, "int4")
    assert EMBEDDING not in levels
    assert levels[HEAD].shape == tuple(stored[EMBEDDING].shape)


def test_a_damaged_file_is_named(folder: Path) -> None:
    load(folder, quantize="int8")
    (name,) = kept(folder)
    (folder / name).write_bytes(b"garbage")
    with pytest.raises(Invalid, match=rf"{name} is damaged .* remove it"):
        load(folder, quantize="int8")


def test_a_folder_that_cannot_be_written_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "quantised").touch()  # file permissions do not stop root
    with pytest.raises(Invalid, match="cannot keep int8 weights at"):
        load(folder, quantize="int8")


def test_parts_put_together_are_the_whole(folder: Path) -> None:
    levels = load_levels(folder, read(folder), load_file(folder / "model.safetensors"), "int4")
    for name, axis in (("self_attn.q_proj", 0), ("self_attn.o_proj", 1), ("self_attn.v_proj", 0)):
        key = f"model.layers.1.{name}.weight"
        parts = [part_of(levels[key], key, Share(rank, 2)) for rank in range(2)]
        whole = torch.cat([part.restored(torch.float32) for part in parts], axis)
        assert torch.equal(whole, levels[key].restored(torch.float32))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_what_a_gguf_file_had_in_4_bits_is_kept(
    kind: str, folder: Path, tmp_path: Path, write_gguf: Callable[..., Path]
) -> None:
    """llama.cpp's own codes and the bfloat16 that a conversion makes of them."""
    quantised = gguf.GGMLQuantizationType[kind]
    exact: dict[str, torch.Tensor] = {}

    def rounded(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.array(gguf.dequantize(gguf.quantize(values, quantised), quantised))

    for name, tensor in load_file(folder / "model.safetensors").items():
        exact[name] = torch.from_numpy(rounded(tensor.numpy())) if "proj" in name else tensor
    save_file(exact, folder / "model.safetensors")
    target = tmp_path / "converted"
    target.mkdir()
    convert(write_gguf(folder, tmp_path / "m.gguf", "qwen3"), target, lambda *_: None)
    stored = load_file(target / "model.safetensors")
    half = {name: tensor.bfloat16() for name, tensor in stored.items()}
    for name, level in load_levels(target, read(target), half, "int4").items():
        if level.bits == 4:
            groups = exact[name].unflatten(1, (-1, 32))
            back = level.restored(torch.float32).unflatten(1, (-1, 32))
            largest = groups.abs().amax(-1, keepdim=True)
            assert ((back - groups).abs() <= largest * 2**-8).all(), name  # bfloat16's own: 2^-9
