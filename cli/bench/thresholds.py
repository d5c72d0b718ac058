"""Finds CSA's thresholds for a model, by the loss of dropping blocks in each band of layers."""

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from sps2.cli.bench.compare import compare, summary
from sps2.cli.bench.group import fill
from sps2.common.errors import Invalid
from sps2.common.messages import Scheme, Selection
from sps2.common.model.llama import Llama
from sps2.services.scheduler.csa_thresholds import LIMITS, Sparse, dropping
from sps2.services.scheduler.schemes import SHORT

BANDS = 6
CANDIDATES = (0.2, 0.4, 0.8, 1.6)


class Tried(NamedTuple):
    """The result of one threshold in one band of layers, exact attention elsewhere.

    kept: share of the band's blocks. kl: KL(exact || this) in nats, mean over tokens.
    """

    drop: float
    kept: float
    kl: float


def bands(layers: int) -> list[range]:
    """The layers, cut into at most `BANDS` bands of about the same length."""
    count = min(BANDS, layers)
    edges = [layers * band // count for band in range(count + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def calibrate(
    model: Llama, ids: Sequence[int], ranks: int, report: Callable[[int, int], None]
) -> dict[Sparse, Selection]:
    """Find thresholds for a group of `ranks`, from one document.

    Every candidate is tried in every band, with blocks sent unquantised. Divergences of bands add
    up, nearly. Each setting gets the thresholds that keep the fewest blocks within its limit.

    Args:
        ids: of the document; more than `schemes.SHORT`.
        report: called with the number of trials done, and their total.

    Raises:
        Invalid: the document is too short, or there is only one rank.
    """
    if len(ids) <= SHORT or ranks < 2:
        raise Invalid(f"a calibration needs over {SHORT} tokens and 2 ranks or more")
    exact = fill(model, ids, Scheme("gather"), 1).hidden
    part = range(len(ids) // 4, len(ids))
    tried: list[list[Tried]] = []
    total = len(bands(model.config.layers)) * len(CANDIDATES)
    for band in bands(model.config.layers):
        tried.append([Tried(0.0, 1.0, 0.0)])
        for drop in CANDIDATES:
            report(sum(map(len, tried)) - len(tried), total)
            thresholds = tuple(drop if layer in band else 0.0 for layer in _all(model))
            scheme = Scheme("csa", selection=Selection(thresholds, thresholds, held_out=1.0))
            group = fill(model, ids, scheme, ranks)
            (rows,) = compare(model, ids, exact, [group.hidden], part)
            blocks = sum(each.blocks for each in group.exchanged)
            dropped = blocks - sum(each.kept_blocks for each in group.exchanged)
            kept = 1 - dropped / blocks * model.config.layers / len(band)
            tried[-1].append(Tried(drop, kept, summary(rows).kl))
    report(total, total)
    layers = model.config.layers
    found = {setting: chosen(tried, limit, layers) for setting, limit in LIMITS.items()}
    return {name: dropping(drop, name, statistics.fmean(drop)) for name, drop in found.items()}


def chosen(tried: Sequence[Sequence[Tried]], limit: float, layers: int) -> tuple[float, ...]:
    """Thresholds by layer that keep the fewest blocks with a divergence of at most `limit`."""

    def allowed() -> Iterator[tuple[Tried, ...]]:
        for choice in itertools.product(*tried):
            if sum(each.kl for each in choice) <= limit:
                yield choice

    best = min(allowed(), key=lambda choice: sum(each.kept for each in choice))
    return tuple(each.drop for each, band in zip(best, bands(layers), strict=True) for _ in band)


def _all(model: Llama) -> range:
    return range(model.config.layers)


def document(tokens: int, encode: Callable[[str], list[int]]) -> list[int]:
    """Token ids of the text for calibration: the language reference that Python ships with."""
    from pydoc_data.topics import topics

    ids = encode("\n\n".join(topics[name] for name in sorted(topics)))
    if len(ids) < tokens:
        raise Invalid(f"the document has {len(ids)} tokens, {tokens} are needed")
    return ids[:tokens]


def load_float32(ref: str) -> Llama:
    """Load a model in float32, whose rounding does not affect the measurement."""
    from sps2.common.model.weights import load
    from sps2.common.models import locate

    return load(locate(ref), "float32")
