"""Values of flags that are more than a number or a word."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import typer

from sps2.cli.bench.serve.metrics import METRICS
from sps2.cli.workload.arrivals import Arrivals, Strategy
from sps2.common.validation import MALFORMED


def metrics_of(text: str) -> list[str]:
    """Names of metrics, such as `ttft,tpot`."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in METRICS]:
        raise typer.BadParameter(
            f"{unknown[0]!r} is none of {', '.join(METRICS)}", param_hint="--percentile-metrics"
        )
    return names


def percents_of(text: str) -> list[float]:
    """Percentiles, such as `50,99.9`."""
    try:
        percents = [float(each) for each in text.split(",")]
    except ValueError:
        percents = [math.nan]
    if not all(0 <= each <= 100 for each in percents):
        raise typer.BadParameter(
            f"{text!r} is no list of percentiles such as 50,90,99",
            param_hint="--metric-percentiles",
        )
    return percents


def arrivals_of(
    rate: float,
    burstiness: float,
    strategy: Strategy | None,
    first_rate: float | None,
    last_rate: float | None,
) -> Arrivals:
    """When requests come. The burstiness is that of `vllm bench serve`: 1 / cv^2."""
    if not burstiness > 0:
        raise typer.BadParameter("it must be more than 0", param_hint="--burstiness")
    cv = 0.0 if math.isinf(burstiness) else burstiness**-0.5
    if strategy is None:
        if first_rate is not None or last_rate is not None:
            raise typer.BadParameter(
                "a ramp needs --ramp-up-strategy", param_hint="--ramp-up-start-rps"
            )
        if not rate > 0:
            raise typer.BadParameter("it must be more than 0", param_hint="--request-rate")
        return Arrivals(rate, cv)
    if first_rate is None or last_rate is None or not math.isinf(rate):
        raise typer.BadParameter(
            "it needs --ramp-up-start-rps and --ramp-up-end-rps, and no --request-rate",
            param_hint="--ramp-up-strategy",
        )
    return Arrivals(first_rate, cv, last_rate, strategy)


def headers_of(given: Sequence[str]) -> dict[str, str]:
    """Headers of the command line, and the API key of the environment."""
    headers = {}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["authorization"] = f"Bearer {key}"
    return headers | {name.lower(): value for name, value in pairs_of("--header", given).items()}


def pairs_of(flag: str, given: Sequence[str]) -> dict[str, str]:
    """Pairs such as `KEY=VALUE`."""
    pairs = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not name.strip() or not equals:
            raise typer.BadParameter(f"{each!r} is not KEY=VALUE", param_hint=flag)
        pairs[name.strip()] = value.strip()
    return pairs


def object_of(text: str | None) -> Mapping[str, Any]:
    """A JSON object."""
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except MALFORMED as error:
        raise typer.BadParameter(
            f"it is no JSON object ({error})", param_hint="--extra-body"
        ) from error


def url_of(host: str, port: int) -> str:
    """The address of an HTTP server."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
