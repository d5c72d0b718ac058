"""A tiny random model that takes longer prompts than the other tests need."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sps2.common.model.llama import Llama
from sps2.common.model.weights import load


@pytest.fixture(scope="session")
def folder(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bench") / "model"
    shutil.copytree(checkpoint("smollm2"), made)
    path = made / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return made


@pytest.fixture(scope="session")
def model(folder: Path) -> Llama:
    return load(folder, "float32")
