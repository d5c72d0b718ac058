"""CSA's thresholds for `balanced` and `fast`, shipped or calibrated for a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from sps2.common.errors import Invalid
from sps2.common.messages import Selection
from sps2.common.validation import MALFORMED

Sparse = Literal["balanced", "fast"]

FILE = "attention.json"
"""In a model's folder, written by `spsctl calibrate`; replaces the shipped thresholds."""

DROP: dict[Sparse, float] = {"balanced": 0.2, "fast": 0.5}
"""Blocks of less importance, in units of that of uniform attention, are not sent: docs/csa.md."""
DEPTH = (3.0, 1.0, 2.0, 0.5, 1.0, 2.0)
"""Factors of `DROP` for each sixth of the layers: in trials on SmolLM2-135M the first layers hardly
suffered, those behind the middle did. `spsctl calibrate` finds a model's own."""
FINE_OVER_DROP: dict[Sparse, float] = {"balanced": 8.0, "fast": 2.0}
"""A block is sent in 8 bits if its importance is at least this multiple of `DROP`, or of the mean
that a calibration found; other blocks in 4. `balanced` saves bytes, `fast` drops more and sends the
rest finer."""
STEPS: dict[Sparse, tuple[float, float]] = {"balanced": (0.12, 0.85), "fast": (0.2, 1.4)}
"""Steps of coded blocks: `Selection.steps`."""
CODED_OVER_PACKED: dict[Sparse, float] = {"balanced": 1.0, "fast": 0.625}
"""Coded blocks are dropped below this multiple of the threshold of packed ones: `fast` saves time
with packed blocks, which are for fast links, and bytes with coded ones."""
HELD_OUT: dict[Sparse, float] = {"balanced": 0.15, "fast": 0.3}
"""If held-out probes lose more than this share of attention in a KV head, all blocks are sent."""
LIMITS: dict[Sparse, float] = {"balanced": 0.0005, "fast": 0.002}
"""For calibrations: mean divergence from exact attention per token, in nats, before 4 bits."""


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Selections found for one model.

    model: fingerprint of its weights.
    selections: by setting, then by SP degree as text.
    thresholds: relative to uniform attention; those of files without this field were not.
    """

    model: str
    selections: dict[str, dict[str, Selection]]
    thresholds: Literal["relative"]


def shipped(setting: Sparse, layers: int) -> Selection:
    """The selection of a model without a calibration."""
    drop = [DROP[setting] * DEPTH[layer * len(DEPTH) // layers] for layer in range(layers)]
    return dropping(drop, setting, DROP[setting])


def dropping(drop: Sequence[float], setting: Sparse, usual: float) -> Selection:
    """A selection with these thresholds by layer; its fine thresholds are a multiple of `usual`."""
    fine = FINE_OVER_DROP[setting] * usual
    return Selection(tuple(drop), (fine,) * len(drop), held_out=HELD_OUT[setting])


def coded(packed: Selection, setting: Sparse) -> Selection:
    """The selection of coded blocks that goes with one of packed blocks."""
    drop = tuple(CODED_OVER_PACKED[setting] * each for each in packed.drop)
    return msgspec.structs.replace(packed, drop=drop, steps=STEPS[setting])


def load(folder: Path, fingerprint: str) -> Calibration | None:
    """The calibration in a model's folder, if there is one.

    Raises:
        Invalid: the file is damaged, or for another model.
    """
    path = folder / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = msgspec.json.decode(data, type=Calibration)
    except MALFORMED as error:
        raise Invalid(f"{path} is not a calibration: {error}; remove it or make it anew") from error
    if found.model != fingerprint:
        raise Invalid(
            f"{path} was made for another model ({found.model}, this is {fingerprint}); remove it, "
            "or make one with `spsctl calibrate`"
        )
    return found


def selection(
    setting: Sparse, layers: int, ranks: int, calibration: Calibration | None
) -> Selection:
    """The selection of a setting: calibrated for the SP degree nearest to `ranks`, or shipped."""
    by_degree = calibration.selections.get(setting, {}) if calibration else {}
    if not by_degree:
        return shipped(setting, layers)
    nearest = min(by_degree, key=lambda degree: (abs(int(degree) - ranks), -int(degree)))
    return by_degree[nearest]
