"""Tiles follow the shared memory of the device; where one does not fit, a smaller one is used."""

import logging
from typing import Any

import pytest
import torch
from triton.runtime.errors import OutOfResources
from triton.runtime.interpreter import GridExecutor

from sps2.kernels import Run
from sps2.kernels.gpu import flash, tiles
from sps2.kernels.gpu.tiles import Tile
from sps2.kernels.reference import reference_attention

from .close import near_state

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_fitting", {})


@pytest.mark.parametrize(
    ("kib", "wanted"), [(99, tiles.NARROW), (163, tiles.NARROW), (227, tiles.ROOMY)]
)
def test_tiles_follow_shared_memory(
    kib: int, wanted: dict[int, Tile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "shared_bytes", lambda device: kib << 10)
    for dim in (64, 128, 256):
        assert tiles.prefill(dim, torch.bfloat16, CPU) == wanted[dim * 2]
        tile = tiles.decode(dim, torch.bfloat16, CPU, 16)
        assert 2 * tile.keys * tile.stages * dim * 2 < kib << 10


def test_the_next_smaller_tile_that_fits_is_used_and_remembered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried: list[Tile] = []

    def work(tile: Tile) -> None:
        tried.append(tile)
        if tile.keys * tile.stages > 32:
            raise OutOfResources(tile.keys * tile.stages, 32, "shared memory")

    with caplog.at_level(logging.WARNING):
        tiles.launch("one", Tile(64, 64, 4, 2), work)
    assert tried == [Tile(64, 64, 4, 2), Tile(64, 64, 4, 1), Tile(64, 32, 4, 1)]
    assert "does not fit this GPU" in caplog.text
    tiles.launch("one", Tile(64, 64, 4, 2), work)
    assert tried[3:] == [Tile(64, 32, 4, 1)]
    tiles.launch("another", Tile(64, 64, 4, 2), work)
    assert len(tried) == 7


def test_an_error_if_none_fits() -> None:
    def work(tile: Tile) -> None:
        raise OutOfResources(1, 0, "shared memory")

    with pytest.raises(OutOfResources):
        tiles.launch("one", Tile(16, 32, 4, 2), work)


def test_attention_is_right_with_a_smaller_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    launch, launched = GridExecutor.__call__, []

    def limited(self: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("KEYS", 0) > 16:
            raise OutOfResources(kwargs["KEYS"], 16, "shared memory")
        launched.append(self.fn.__name__)
        launch(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", limited)
    torch.manual_seed(0)
    q, k, v = torch.randn(9, 2, 16), torch.randn(40, 1, 16), torch.randn(40, 1, 16)
    got = flash.attend(q, k, v, [([Run(0, 31, 9)], [Run(0, 0, 40)])], 0.25)
    near_state(
        got,
        reference_attention(q, k, v, torch.arange(31, 40), torch.arange(40), scale=0.25),
        q.dtype,
    )
    assert launched == ["_flash"]
