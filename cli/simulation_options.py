"""Options that `spsctl simulate`, `plan` and `bench accuracy` have in common."""

from pathlib import Path
from typing import Annotated

import typer

from sps2.cli.simulator.hardware import CARDS
from sps2.cli.workload import sources

ModelOption = Annotated[
    str,
    typer.Option(help="A pulled model, a folder or file with its config.json, or a known shape."),
]
HardwareOption = Annotated[
    str | None, typer.Option(help=f"A GPU for every shard: {', '.join(CARDS)}.")
]
ProfileOption = Annotated[
    Path | None, typer.Option(help="A file of `spsctl profile`, instead of a GPU.", dir_okay=False)
]
LinkOption = Annotated[
    float | None,
    typer.Option(min=0.001, help="Gbit/s of each GPU's network; without it NVLink."),
]
WorkloadOption = Annotated[
    str,
    typer.Option(
        help=f"A trace file, or one of {', '.join(sources.names())}; or fixed:PROMPT,ANSWER."
    ),
]
BurstinessOption = Annotated[
    float | None,
    typer.Option(min=0.001, help="Of arrivals: 1 is Poisson, less comes in bursts."),
]
ScaleOption = Annotated[float, typer.Option(min=1e-6, help="Factor of all lengths.")]
LongestOption = Annotated[
    int | None, typer.Option(min=1, help="Leave out longer prompts, in tokens.")
]
SeedOption = Annotated[int, typer.Option(help="Of everything that is drawn.")]


def variation(burstiness: float | None) -> float | None:
    """The coefficient of variation of gaps between arrivals; see `sources.find`."""
    return None if burstiness is None else burstiness**-0.5
