"""GGUF files become folders that compute the same; broken or foreign ones are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from sps2.common.errors import Invalid
from sps2.common.model.config import read
from sps2.common.model.generation import SamplingDefaults, sampling_defaults
from sps2.common.model.weights import load
from sps2.common.models.convert import convert
from sps2.common.text.tokens import Tokenizer

Checkpoint = Callable[[str], Path]
WriteGguf = Callable[..., Path]


def silent(stage: str, done: int, total: int) -> None:
    assert stage
    assert 0 <= done <= total


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "converted"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("family", "architecture"),
    [
        ("llama2", "llama"),
        ("smollm2", "llama"),
        ("llama-linear", "llama"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen3"),
    ],
)
def test_same_model_comes_out(
    write_gguf: WriteGguf,
    family: str,
    architecture: str,
    checkpoint: Checkpoint,
    tmp_path: Path,
    target: Path,
) -> None:
    source = checkpoint(family)

    def scaling(writer: Any) -> None:
        if family == "llama-linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(2.0)

    convert(write_gguf(source, tmp_path / "m.gguf", architecture, scaling), target, silent)
    before, after = load_file(source / "model.safetensors"), load_file(target / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    ours, theirs = load(target).config, load(source).config
    assert (ours.rope, ours.windows, ours.tied) == (theirs.rope, theirs.windows, theirs.tied)
    assert ours.norm_eps == theirs.norm_eps
    load(target)
    text = "Some text, 123  tokens\n\nand\tmore <|start|> é 你好"
    tokenizer = Tokenizer(target)
    reader = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert tokenizer.encode(text) == reader.encode(text)
    assert tokenizer.encode(text) == Tokenizer(source).encode(text)
    assert tokenizer.eos_ids == (2,)
    assert tokenizer.chat([{"role": "user", "content": "hi"}]) == tokenizer.encode("hi")


def test_every_text_that_ends_an_answer_counts(
    write_gguf: WriteGguf, checkpoint: Checkpoint, tmp_path: Path, target: Path
) -> None:
    """The file names one end, its turns end with another: llama.cpp goes by the text."""

    def named(writer: Any) -> None:
        (table,) = writer.kv_data
        merges = table["tokenizer.ggml.merges"].value
        del merges[20:]
        tokens = table["tokenizer.ggml.tokens"].value
        tokens[0], tokens[300], tokens[301] = "<|im_end|>", "<|eot_id|>", "<|endoftext|>"
        table["tokenizer.ggml.token_type"].value[301] = 3

    source = write_gguf(checkpoint("llama2"), tmp_path / "m.gguf", "llama", named)
    convert(source, target, silent)
    assert Tokenizer(target).eos_ids == (2, 0, 301)  # 300 is plain text


def test_a_vocabulary_that_contradicts_itself(
    write_gguf: WriteGguf, checkpoint: Checkpoint, tmp_path: Path, target: Path
) -> None:
    def without(writer: Any) -> None:
        writer.kv_data[0]["tokenizer.ggml.tokens"].value[300] = "of no merge"

    source = write_gguf(checkpoint("llama2"), tmp_path / "m.gguf", "llama", without)
    with pytest.raises(Invalid, match=r"m\.gguf.*tokenizer.*not sound"):
        convert(source, target, silent)


@pytest.mark.parametrize("part", [0, 1])
def test_a_part_of_several_is_refused_as_such(
    write_gguf: WriteGguf, checkpoint: Checkpoint, tmp_path: Path, target: Path, part: int
) -> None:
    def split(writer: Any) -> None:
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", 20)
        if part:  # only the first tells of the model
            writer.kv_data[0].pop("general.architecture")

    source = write_gguf(checkpoint("llama2"), tmp_path / "m.gguf", "llama", split)
    with pytest.raises(Invalid, match=rf"m\.gguf is part {part + 1} of 2 of a model; name all"):
        convert(source, target, silent)
    assert list(target.iterdir()) == []


def test_what_the_makers_recommend_is_kept(
    write_gguf: WriteGguf, checkpoint: Checkpoint, tmp_path: Path, target: Path
) -> None:
    def recommending(writer: Any) -> None:
        writer.add_float32("general.sampling.temp", 0.6)
        writer.add_int32("general.sampling.top_k", 20)

    source = write_gguf(checkpoint("llama2"), tmp_path / "m.gguf", "llama", recommending)
    convert(source, target, silent, {"temperature": 0.2, "top_p": 0.9})
    assert sampling_defaults(target) == SamplingDefaults(temperature=0.6, top_p=0.9, top_k=20)
    assert Tokenizer(target).eos_ids == (2,)


def llama3_factors() -> np.ndarray[Any, Any]:
    frequencies = 1e4 ** -(np.arange(8) / 8)
    wavelengths = 2 * np.pi / frequencies
    smooth = (8192 / wavelengths - 1) / 3
    factors = np.where(wavelengths < 2048, 1, np.where(wavelengths > 8192, 32, 0))
    blended = 1 / ((1 - smooth) / 32 + smooth)
    return np.where(factors == 0, blended, factors).astype(np.float32)


def test_rope_scaling(
    write_gguf: WriteGguf, checkpoint: Checkpoint, tmp_path: Path, target: Path
) -> None:
    def yarn(writer: Any) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(128)

    convert(write_gguf(checkpoint("qwen2"), tmp_path / "a.gguf", "qwen2", yarn), target, silent)
    rope = read(target).rope
    assert (rope.rope_type, rope.factor) == ("yarn", 4.0)
    assert rope.original_max_position_embeddings == 128

    def llama3(writer: Any) -> None:
        writer.add_tensor("rope_freqs.weight", llama3_factors())

    convert(write_gguf(checkpoint("llama2"), tmp_path / "b.gguf", "llama", llama3), target, silent)
    rope = read(target).rope
    assert (rope.rope_type, rope.factor, rope.high_freq_factor) == ("llama3", 32.0, 4.0)

    def odd(writer: Any) -> None:
        writer.add_tensor("rope_freqs.weight", np.linspace(1, 9, 8, dtype=np.float32))

    with pytest.raises(Invalid, match="no known scaling"):
        convert(write_gguf(checkpoint("llama2"), tmp_path / "c.gguf", "llama", odd), target, silent)


@pytest.mark.parametrize(
    ("architecture", "extra", "words"),
    [
        ("gemma2", lambda w: None, "'gemma2' is not supported; supported are llama"),
        ("llama", lambda w: w.add_expert_count(8), "8 experts"),
        ("llama", lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), "longrope"),
        ("llama", lambda w: w.add_tensor("blk.0.odd.weight", np.ones(2, np.float32)), "blk.0.odd"),
    ],
)
def test_unsupported_is_named(
    write_gguf: WriteGguf,
    architecture: str,
    extra: Callable[[Any], object],
    words: str,
    checkpoint: Checkpoint,
    tmp_path: Path,
    target: Path,
) -> None:
    source = write_gguf(checkpoint("llama2"), tmp_path / "m.gguf", architecture, extra)
    with pytest.raises(Invalid, match=words):
        convert(source, target, silent)


def test_lacking_tensors_are_named(
    write_gguf: WriteGguf, checkpoint: Checkpoint, tmp_path: Path, target: Path
) -> None:
    longer = Path(shutil.copytree(checkpoint("llama2"), tmp_path / "longer"))
    table = json.loads((longer / "config.json").read_text()) | {"num_hidden_layers": 4}
    (longer / "config.json").write_text(json.dumps(table))
    with pytest.raises(Invalid, match=r"lacks 'model\.layers\.3\."):
        convert(write_gguf(longer, tmp_path / "m.gguf", "llama"), target, silent)


def test_truncated_anywhere_is_invalid(
    write_gguf: WriteGguf, checkpoint: Checkpoint, tmp_path: Path, target: Path
) -> None:
    whole = write_gguf(checkpoint("llama2"), tmp_path / "m.gguf", "llama").read_bytes()
    broken = tmp_path / "broken.gguf"
    cuts = [0, 3, 4, 20, *range(100, len(whole), len(whole) // 20), len(whole) - 1]
    for cut in cuts:
        broken.write_bytes(whole[:cut])
        with pytest.raises(Invalid, match=r"broken\.gguf"):
            convert(broken, target, silent)
    for garbage in (b"GGUF" + b"\xff" * 400, b"\0" * 400, b"PK\3\4" * 100):
        broken.write_bytes(garbage)
        with pytest.raises(Invalid, match=r"broken\.gguf"):
            convert(broken, target, silent)
    with pytest.raises(Invalid, match="cannot read"):
        convert(tmp_path / "none.gguf", target, silent)


@pytest.mark.parametrize("fault", ["split.no", "head_count"])
def test_fields_that_make_no_sense_are_refused(
    write_gguf: WriteGguf, checkpoint: Checkpoint, tmp_path: Path, target: Path, fault: str
) -> None:
    def spoil(writer: Any) -> None:
        if fault == "split.no":
            writer.add_string("split.no", "first")
        else:
            (table,) = writer.kv_data
            table["llama.attention.head_count"].value = 0
            del table["llama.attention.key_length"]

    path = write_gguf(checkpoint("llama2"), tmp_path / "m.gguf", "llama", spoil)
    with pytest.raises(Invalid, match=r"m\.gguf cannot be converted"):
        convert(path, target, silent)
