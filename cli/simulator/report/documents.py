"""Runs as JSON."""

from collections.abc import Sequence
from math import inf, isfinite, nan
from typing import Any

import msgspec

from sps2.cli.simulator.comparison import Comparison
from sps2.cli.simulator.outcomes import Outcome, Run
from sps2.cli.simulator.statistics import Summary
from sps2.common.errors import Invalid
from sps2.common.validation import MALFORMED

VERSION = 1
FIGURE = {"value", "low", "high", "count"}


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` writes. Every figure is an object with `value`, `low`, `high` (its 95 %
    interval) and `count`; `value` is null if there is none, `high` if the requests are too few to
    bound it. Units are in the names: `_s` are seconds.

    requests: of each run in the order of `runs`, if they were asked for.
    """

    version: int = VERSION
    runs: list[Summary] = []
    comparisons: list[Comparison] = []
    requests: list[list[Outcome]] = []


def write(
    summaries: Sequence[Summary],
    comparisons: Sequence[Comparison] = (),
    runs: Sequence[Run] = (),
) -> bytes:
    """The JSON of runs. runs: those whose requests shall be in it."""
    document = Document(
        runs=list(summaries),
        comparisons=list(comparisons),
        requests=[run.outcomes for run in runs],
    )
    built = _without_infinities(msgspec.to_builtins(document))
    return msgspec.json.format(msgspec.json.encode(built), indent=1) + b"\n"


def read(data: bytes) -> Document:
    """What `write` wrote.

    Raises:
        Invalid: it is something else, or of another version.
    """
    try:
        found = msgspec.json.decode(data)
        if isinstance(found, dict) and found.get("version", VERSION) != VERSION:
            raise Invalid(
                f"the results are of version {found['version']}, and this release reads {VERSION}: "
                "simulate again"
            )
        return msgspec.convert(_with_infinities(found), Document)
    except MALFORMED as error:
        raise Invalid(f"no results of a simulation: {error}") from error


def _without_infinities(value: Any) -> Any:
    """JSON has neither NaN nor infinities: null."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_infinities(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_infinities(each) for each in value]
    return value


def _with_infinities(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_infinities(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == FIGURE:
        missing = {"value": nan, "low": -inf, "high": inf}
        if value["value"] is None:
            missing = dict.fromkeys(missing, nan)
        return {
            key: missing[key] if each is None and key in missing else each
            for key, each in value.items()
        }
    return {key: _with_infinities(each) for key, each in value.items()}
