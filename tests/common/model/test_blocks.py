"""Models from GGUF files compute with the numbers that the file has, at the file's bits."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sps2.common.errors import Invalid
from sps2.common.model.config import block_types, read, stored_as
from sps2.common.model.llama import Llama
from sps2.common.model.local import LocalAttention
from sps2.common.model.share import Share
from sps2.common.model.tensor_names import EMBEDDING, HEAD, shapes
from sps2.common.model.weights import load
from sps2.common.models import validate
from sps2.common.models.convert import convert
from sps2.common.models.gguf_files import open_model
from sps2.kernels import native
from sps2.kernels.weight_forms import FORMS, QuantisedWeight

Checkpoint = Callable[[str], Path]
WriteGguf = Callable[..., Path]
Converted = Callable[..., Path]

MIXTURE = {"token_embd": "Q6_K", "output": "Q6_K", "attn_v": "Q5_K", "ffn_down": "Q8_0"}
"""As llama.cpp mixes types in Q4_K_M; all other weights are Q4_K."""


def mixture(name: str) -> str:
    return MIXTURE.get(name.split(".")[-2], "Q4_K")


@pytest.fixture
def converted(checkpoint: Checkpoint, write_gguf: WriteGguf, tmp_path: Path) -> Converted:
    """Makes a GGUF file and the folder that it is converted to."""

    def make(
        kind_of: Callable[[str], str | None],
        family: str = "wide",
        architecture: str = "llama",
        keep_blocks: bool = True,
    ) -> Path:
        source = tmp_path / "m.gguf"
        write_gguf(checkpoint(family), source, architecture, kind_of=kind_of)
        target = tmp_path / f"converted-{keep_blocks}"
        target.mkdir()
        convert(source, target, lambda *_: None, keep_blocks=keep_blocks)
        return target

    return make


async def logits(model: Llama, tokens: int) -> torch.Tensor:
    ids = torch.arange(tokens) * 7 % model.config.vocab_size
    positions = torch.arange(tokens)
    hidden = await model.forward(ids, positions, LocalAttention(model.config, positions))
    return model.logits(hidden)


def numbers(folder: Path) -> Mapping[str, torch.Tensor]:
    """All weights in `folder`, as numbers."""
    shape = shapes(read(folder))
    stored = load_file(folder / "model.safetensors")
    for name, kind in block_types(folder).items():
        weight = QuantisedWeight(stored[name], shape[name][0], FORMS[kind])
        stored[name] = weight.restored(torch.float32).contiguous()
    return {name: tensor.float() for name, tensor in stored.items()}


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0", "IQ4_XS", "Q3_K", "mixture"])
@pytest.mark.parametrize("tokens", [1, 5, 40])
async def test_it_computes_with_the_numbers_of_the_file(
    converted: Converted, tmp_path: Path, kind: str, tokens: int
) -> None:
    folder = converted(mixture if kind == "mixture" else lambda name: kind)
    validate(folder)
    if native.level:
        assert set(block_types(folder).values()) == (
            {"Q4_K", "Q5_K", "Q6_K", "Q8_0"} if kind == "mixture" else {kind}
        )
    dense = tmp_path / "dense"
    dense.mkdir()
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    (dense / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    exact = {name: tensor.clone() for name, tensor in numbers(folder).items()}
    stored = open_model(tmp_path / "m.gguf").tensors
    embedding = stored["token_embd.weight"]
    assert torch.equal(
        exact[EMBEDDING], torch.from_numpy(gguf.dequantize(embedding.data, embedding.tensor_type))
    )
    save_file(exact, dense / "model.safetensors")
    found = await logits(load(folder, "float32"), tokens)
    expected = await logits(load(dense, "float32"), tokens)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("family", "architecture"),
    [("llama2", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3"), ("mistral", "llama")],
)
async def test_it_computes_what_transformers_does(
    converted: Converted, checkpoint: Checkpoint, family: str, architecture: str
) -> None:
    """Every family, with llama.cpp's rounding; Mistral without a window, as llama.cpp runs it."""
    folder = converted(lambda name: "Q8_0", family, architecture)
    theirs = AutoModelForCausalLM.from_pretrained(
        checkpoint(family), dtype=torch.float32, attn_implementation="eager"
    )
    theirs.config.sliding_window = None
    ids = torch.arange(40) * 7 % theirs.config.vocab_size
    with torch.no_grad():
        for each in theirs.parameters():
            each.copy_(rounded(each) if each.dim() == 2 else each.bfloat16())
        expected = theirs(ids[None]).logits[0]
    found = await logits(load(folder, "float32"), 40)
    assert read(folder).windows == (None,) * 3
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)


def rounded(weight: torch.Tensor) -> torch.Tensor:
    kind = gguf.GGMLQuantizationType.Q8_0
    return torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind))


@pytest.mark.skipif(not native.level, reason="needs the C++ kernels")
def test_the_weights_stay_at_their_bits(converted: Converted) -> None:
    folder = converted(mixture)
    model = load(folder)
    assert model.dtype == torch.bfloat16
    assert stored_as(folder, model.config) == "Q4_K"
    stored, shape = load_file(folder / "model.safetensors"), shapes(model.config)
    bits = {"Q4_K": 4.625, "Q5_K": 5.625, "Q6_K": 6.5625, "Q8_0": 8.5}
    for name, kind in block_types(folder).items():
        assert stored[name].nbytes * 8 == shape[name][0] * shape[name][1] * bits[kind]


async def test_a_share_whose_parts_end_within_a_block(
    converted: Converted, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of 256 inputs is no whole block of Q4_K, half of 512 is: the former are dequantised."""
    folder = converted(mixture)
    whole = numbers(folder)
    with caplog.at_level(logging.INFO):
        halves = [load(folder, "float32", collectives=_share(rank)) for rank in range(2)]
    if native.level:
        assert "weights become float32: a share ends within a block" in caplog.text
    for layer in range(3):
        kept = [half._layers[layer].down.weights[0][0] for half in halves]
        split = [half._layers[layer].o.weights[0][0] for half in halves]
        queries = [half._layers[layer].qkv.weights[0][0] for half in halves]
        if native.level:
            assert all(isinstance(each, QuantisedWeight) for each in (*kept, *queries))
        assert all(isinstance(each, torch.Tensor) for each in split)
        for name, parts, axis in (
            ("mlp.down_proj", kept, 1),
            ("self_attn.o_proj", split, 1),
            ("self_attn.q_proj", queries, 0),
        ):
            joined = torch.cat([_numbers(each) for each in parts], axis)
            assert torch.equal(joined, whole[f"model.layers.{layer}.{name}.weight"])


def test_a_tied_head_is_split_where_the_embedding_is_not(converted: Converted) -> None:
    folder = converted(lambda name: "Q8_0", "qwen3", "qwen3")
    halves = [load(folder, "float32", collectives=_share(rank)) for rank in range(2)]
    heads = torch.cat([_numbers(half._head.weights[0][0]) for half in halves])
    assert torch.equal(heads, numbers(folder)[EMBEDDING])
    assert HEAD not in load_file(folder / "model.safetensors")


@pytest.mark.skipif(not native.level, reason="needs the C++ kernels")
async def test_blocks_can_be_made_smaller_still(converted: Converted) -> None:
    folder = converted(lambda name: "Q8_0")
    model = load(folder, "float32", quantize="int4")
    assert {model._layers[0].down.weights[0][0].form.name, model._head.weights[0][0].form.name} == {
        "Q4_1",
        "int8",
    }
    found, exact = await logits(model, 5), await logits(load(folder, "float32"), 5)
    assert (found - exact).abs().mean() < 0.5 * exact.abs().mean()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
async def test_without_a_kernel_it_is_the_same_model(
    converted: Converted, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = converted(mixture)
    expected = await logits(load(folder, "float32"), 5)
    monkeypatch.setattr(native, "level", 0)
    found = await logits(load(folder, dtype), 5)
    tolerance = 5e-2 if dtype == "float16" else 2e-3
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_where_there_is_no_kernel_numbers_are_stored(
    converted: Converted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "level", 0)
    folder = converted(mixture)
    assert block_types(folder) == {}
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {
        torch.bfloat16
    }
    assert "Q4_K, Q5_K, Q6_K, Q8_0 need the C++ kernels: they become numbers" in caplog.text


def test_types_without_a_kernel_become_numbers(
    converted: Converted, caplog: pytest.LogCaptureFixture
) -> None:
    folder = converted(lambda name: "TQ2_0" if "ffn_up" in name else "Q8_0")
    assert "weights in TQ2_0 have no kernel: they become numbers" in caplog.text
    stored = load_file(folder / "model.safetensors")
    assert stored["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    load(folder)


@pytest.mark.skipif(not native.level, reason="needs the C++ kernels")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda types: dict.fromkeys(types, "Q9_K"), "in blocks of 'Q9_K', which are not supp"),
        (lambda types: dict.fromkeys(types, "Q6_K"), r"blocks of Q6_K are uint8 \["),
        (lambda types: types | {"model.odd": "Q8_0"}, "names model.odd as in blocks, and there is"),
        (lambda types: ["Q8_0"], "quantization_config has no types"),
        (lambda types: dict(list(types.items())[1:]), "is of dtype uint8|has shape"),
    ],
)
def test_a_folder_that_contradicts_itself(
    converted: Converted, change: Callable[..., object], message: str
) -> None:
    folder = converted(lambda name: "Q8_0")
    table = json.loads((folder / "config.json").read_text())
    quantisation = table["quantization_config"]
    quantisation["types"] = change(quantisation["types"])
    (folder / "config.json").write_text(json.dumps(table))
    with pytest.raises(Invalid, match=message):
        load(folder)


def _share(rank: int) -> object:
    return SimpleNamespace(share=Share(rank, 2))


def _numbers(weight: QuantisedWeight | torch.Tensor) -> torch.Tensor:
    return weight if isinstance(weight, torch.Tensor) else weight.restored(torch.float32)
