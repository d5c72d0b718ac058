"""Loading weights: shared pages, every layout of files, and clear words for broken ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sps2.common.errors import Invalid
from sps2.common.model.share import Quantize
from sps2.common.model.tensor_names import EMBEDDING, FINAL_NORM, HEAD, shapes
from sps2.common.model.weights import load

Checkpoint = Callable[[str], Path]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A private copy of a tiny model."""
    return Path(shutil.copytree(checkpoint("llama3"), tmp_path / "model"))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = dict(load_file(folder / SINGLE))
    change(tensors)
    save_file(tensors, folder / SINGLE)


def test_names_cover_every_family(checkpoint: Checkpoint) -> None:
    for family in ("llama-linear", "qwen2", "qwen3"):
        folder = checkpoint(family)
        stored = {name: tuple(x.shape) for name, x in load_file(folder / SINGLE).items()}
        assert stored == shapes(load(folder).config)


def test_sharded_equals_single(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
    whole, sharded = load(folder), load(tmp_path / "sharded")
    hidden = torch.randn(2, 64)
    torch.testing.assert_close(whole.logits(hidden), sharded.logits(hidden), rtol=0, atol=0)

    next((tmp_path / "sharded").glob("model-00002*")).unlink()
    with pytest.raises(Invalid, match="lacks model-00002"):
        load(tmp_path / "sharded")


def test_dtype(folder: Path) -> None:
    assert load(folder).dtype == torch.float32
    assert load(folder, "bfloat16").dtype == torch.bfloat16
    with pytest.raises(Invalid, match="int8"):
        load(folder, "int8")

    table = json.loads((folder / "config.json").read_text())
    table = {key: value for key, value in table.items() if key not in ("dtype", "torch_dtype")}
    (folder / "config.json").write_text(json.dumps(table))
    rewrite(folder, lambda t: t.update({name: x.half() for name, x in t.items()}))
    assert load(folder).dtype == torch.float16


def test_pages_are_the_files_own(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """64 MiB of bfloat16 embeddings: mapped and read, but not copied into this process."""
    folder = Path(shutil.copytree(checkpoint("smollm2"), tmp_path / "model"))
    rows = (64 << 20) // (72 * 2)
    table = json.loads((folder / "config.json").read_text())
    table |= {"vocab_size": rows, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(table))
    rewrite(
        folder,
        lambda t: t.update(
            {name: x.bfloat16() for name, x in t.items()}
            | {EMBEDDING: torch.ones(rows, 72, dtype=torch.bfloat16)}
        ),
    )
    row = torch.ones(1, 72, dtype=torch.bfloat16)
    first = load(folder)  # with what libraries allocate once
    assert first.logits(row).sum() > 0
    mapped = set(mappings(folder / SINGLE))
    before = private_dirty_bytes()
    model = load(folder)
    assert model.logits(row).sum() > 0
    assert private_dirty_bytes() - before < 48 << 20  # the rest is for what else the process does
    (mapping,) = set(mappings(folder / SINGLE)) - mapped
    assert mapping.resident_bytes > 60 << 20
    assert mapping.private_dirty_bytes == 0


class Mapping(NamedTuple):
    addresses: str
    resident_bytes: int
    private_dirty_bytes: int


def mappings(path: Path) -> list[Mapping]:
    """Where this process has a file mapped."""
    found: list[dict[str, str]] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, value = line.partition(" ")
        if key.endswith(":"):
            found[-1][key] = value.split()[0]
        else:
            found.append({"addresses": key, "path": line.partition("/")[2]})
    return [
        Mapping(one["addresses"], int(one["Rss:"]) << 10, int(one["Private_Dirty:"]) << 10)
        for one in found
        if f"/{one['path']}" == str(path)
    ]


def private_dirty_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_Dirty"))


def test_old_extras_are_ignored(folder: Path) -> None:
    rewrite(
        folder,
        lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}),
    )
    assert load(folder).config.layers == 3


@pytest.mark.parametrize("quantize", ["none", "int8"])
@pytest.mark.parametrize("stored", ["embedding", "head", "same", "other"])
def test_the_weights_say_whether_the_head_is_the_embedding(
    checkpoint: Checkpoint,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    stored: str,
    quantize: Quantize,
) -> None:
    """Under `tie_word_embeddings`, which one of them, both, or two that differ may be stored."""
    folder = Path(shutil.copytree(checkpoint("qwen3"), tmp_path / "model"))
    other = torch.randn(384, 64, generator=torch.Generator().manual_seed(1))

    def change(tensors: dict[str, torch.Tensor]) -> None:
        if stored == "head":
            tensors[HEAD] = tensors.pop(EMBEDDING)
        elif stored != "embedding":
            tensors[HEAD] = tensors[EMBEDDING].clone() if stored == "same" else other

    rewrite(folder, change)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    hidden = torch.randn(2, 64)
    with torch.no_grad():
        expected = theirs.lm_head(hidden)
    model = load(folder, "float32", quantize=quantize)
    close = {"rtol": 1e-4, "atol": 1e-4} if quantize == "none" else {"rtol": 0.1, "atol": 0.3}
    torch.testing.assert_close(model.logits(hidden), expected, **close)
    assert model.config.tied == (stored != "other")
    assert ("lm_head of their own" in caplog.text) == (stored == "other")


def test_a_whole_file_is_taken_before_the_parts_of_an_index(folder: Path) -> None:
    """As transformers does: an index may tell of parts that were merged and are gone."""
    names = dict.fromkeys(load_file(folder / SINGLE), "model-00001-of-00002.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": names}), encoding="utf-8")
    assert load(folder).config.layers == 3


def set_head(tensors: dict[str, torch.Tensor], value: torch.Tensor) -> None:
    tensors[HEAD] = value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(FINAL_NORM), r"model\.norm\.weight is missing"),
        (lambda t: t.pop(HEAD), r"lm_head\.weight is missing"),
        (lambda t: [t.pop(name) for name in list(t)[:6]], "and 3 more are missing"),
        (lambda t: t.update(extra=torch.ones(1)), "extra is in the weights, but not"),
        (lambda t: set_head(t, torch.ones(3, 64)), r"lm_head\.weight has shape \[3, 64\]"),
        (lambda t: set_head(t, torch.ones(384, 64).int()), "int32"),
    ],
)
def test_wrong_tensors_are_named(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], words: str
) -> None:
    rewrite(folder, change)
    with pytest.raises(Invalid, match=words):
        load(folder)


def test_corrupt_files_are_named(folder: Path) -> None:
    path = folder / SINGLE
    whole = path.read_bytes()
    for broken in (
        b"",
        b"garbage",
        whole[:5],
        whole[:200],
        whole[:-1],
        whole + b"\0",
        b"\xff" * 99,
    ):
        path.write_bytes(broken)
        with pytest.raises(Invalid, match=r"model\.safetensors is not a sound"):
            load(folder)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / SINGLE).unlink()
    with pytest.raises(Invalid, match=r"no weights: neither model\.safetensors"):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(Invalid, match="must be converted"):
        load(folder)
    (folder / INDEX).write_text("{}")
    with pytest.raises(Invalid, match="no weight_map"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(Invalid, match=r"config\.json"):
        load(folder)
