"""A cluster with weights in 4 bits answers as transformers does with the numbers they stand for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sps2.common.client import Client
from sps2.common.model.config import read
from sps2.common.model.quantised import load

from .conftest import Launch, Running
from .test_cluster import answered_as_transformers


def restored(folder: Path, target: Path) -> Path:
    """The quantised model as a checkpoint like others, whose head is not its embedding."""
    shutil.copytree(folder, target)
    stored = load_file(folder / "model.safetensors")
    levels = load(folder, read(folder), stored, "int4")
    numbers = {name: each.restored(torch.float32).contiguous() for name, each in levels.items()}
    save_file(stored | numbers, target / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return target


def test_answers_are_those_of_the_numbers(
    launch: Launch, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    with launch("qwen3", "tcp", mixed=2, quantize="int4") as cluster:
        plain = Running(restored(cluster.folder, tmp_path / "m"), cluster.bus, cluster.url)
        for length in (1, 17, 150):
            answered_as_transformers(plain, length, 32)
        with Client(cluster.bus) as client:
            assert client.status().quantize == "int4"
