"""Measured tiles are kept by device, and what is broken or of another device is not used."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sps2.kernels.gpu import tiles, tuned
from sps2.kernels.gpu.tiles import Tile

HERE = "NVIDIA Test, Triton 1"


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))
    monkeypatch.setattr(tuned, "kind", lambda device: HERE)
    tuned.table.cache_clear()
    yield tmp_path / "tiles.json"
    tuned.table.cache_clear()


CPU = torch.device("cpu")


def test_a_measured_tile_is_taken_for_its_shape_alone() -> None:
    usual = tiles.prefill(64, torch.bfloat16, CPU)
    tuned.keep(HERE, {tuned.shape("flash", 128, 2): (64, 32, 4, 3)})
    assert tiles.prefill(128, torch.bfloat16, CPU) == Tile(64, 32, 4, 3)
    assert tiles.prefill(96, torch.float16, CPU) == Tile(64, 32, 4, 3)
    assert tiles.prefill(128, torch.bfloat16, CPU, 10) == Tile(16, 32, 4, 3)
    assert tiles.prefill(64, torch.bfloat16, CPU) == usual


def test_decoding_keeps_the_rows_it_has() -> None:
    tuned.keep(HERE, {tuned.shape("decode", 128, 2): (16, 128, 8, 4)})
    assert tiles.decode(128, torch.bfloat16, CPU, 20) == Tile(32, 128, 8, 4)


def test_what_is_of_others_stays(file: Path) -> None:
    tuned.keep("another", {"flash, 64, 2": (64, 64, 4, 1)})
    tuned.keep(HERE, {"flash, 64, 2": (128, 64, 4, 1)})
    tuned.keep(HERE, {"decode, 64, 2": (16, 64, 4, 1)})
    assert json.loads(file.read_text()) == {
        "another": {"flash, 64, 2": [64, 64, 4, 1]},
        HERE: {"flash, 64, 2": [128, 64, 4, 1], "decode, 64, 2": [16, 64, 4, 1]},
    }


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        json.dumps({HERE: {"flash, 128, 2": [64, 64, 4]}}),
        json.dumps({HERE: {"flash, 128, 2": [60, 64, 4, 2]}}),
        json.dumps({HERE: {"flash, 128, 2": [64, 64, 4, 99]}}),
        json.dumps({HERE: {"flash, 128, 2": "64"}}),
    ],
)
def test_a_broken_file_counts_as_none(
    file: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    usual = tiles.prefill(128, torch.bfloat16, CPU)
    file.write_text(text)
    tuned.table.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert tiles.prefill(128, torch.bfloat16, CPU) == usual
    assert str(file) in caplog.text
