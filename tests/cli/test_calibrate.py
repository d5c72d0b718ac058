"""`spsctl calibrate`: thresholds for a model."""

import pytest
import torch
from typer.testing import CliRunner

from sps2.cli.bench.thresholds import BANDS, CANDIDATES, Tried, bands, calibrate, chosen
from sps2.cli.main import app
from sps2.common.errors import Invalid
from sps2.services.scheduler.csa_thresholds import LIMITS

from ..services.world import tiny_model


@pytest.mark.parametrize("layers", [1, 3, 6, 7, 30])
def test_bands_cover_all_layers_in_order(layers: int) -> None:
    found = bands(layers)
    assert [layer for band in found for layer in band] == list(range(layers))
    assert len(found) == min(layers, BANDS)


def test_the_fewest_blocks_within_the_limit_are_chosen() -> None:
    exact = Tried(0.0, 1.0, 0.0)
    cheap = [exact, Tried(0.1, 0.5, 0.001), Tried(0.2, 0.4, 0.01)]
    dear = [exact, Tried(0.1, 0.9, 0.01), Tried(0.2, 0.2, 0.1)]
    assert chosen([cheap, dear], 0.0, 2) == (0, 0)
    assert chosen([cheap, dear], 0.011, 2) == (0.1, 0.1)
    assert chosen([cheap, dear], 0.0105, 2) == (0.2, 0)
    assert chosen([cheap, dear], 1.0, 2) == (0.2, 0.2)


def test_settings_of_a_model_are_ordered_and_within_reach() -> None:
    model = tiny_model()
    ids = torch.randint(97, (4200,), generator=torch.Generator().manual_seed(0)).tolist()
    told: list[tuple[int, int]] = []
    found = calibrate(model, ids, 2, lambda done, total: told.append((done, total)))
    assert told[-1] == (3 * len(CANDIDATES), 3 * len(CANDIDATES))
    assert set(found) == set(LIMITS)
    assert sum(found["fast"].drop) >= sum(found["balanced"].drop)
    assert all(len(each.drop) == 3 for each in found.values())
    with pytest.raises(Invalid, match="over 4096 tokens"):
        calibrate(model, ids[:4096], 2, lambda done, total: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sp-degree", "2;4"], "2,4,8"),
        (["--sp-degree", "1"], "degree 2"),
    ],
)
def test_wrong_usage_says_what_is_right(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["calibrate", *arguments])
    assert result.exit_code == 2
    assert message in result.output
