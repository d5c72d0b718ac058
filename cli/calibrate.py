"""`spsctl calibrate`: measures a model once, to calibrate its sparse attention."""

from typing import Annotated

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sps2.cli import render
from sps2.common.errors import Invalid
from sps2.common.models import fingerprint, locate
from sps2.services.scheduler.csa_thresholds import FILE, Calibration


def calibrate(
    model: Annotated[
        str, typer.Option(help="A model as for `spsctl pull`, or a folder.")
    ] = "smollm2-135m",
    tokens: Annotated[
        int, typer.Option(min=1, help="Length of the document to measure on, in tokens.")
    ] = 8000,
    degrees: Annotated[
        str,
        typer.Option("--sp-degree", help="Prefill shards that share a prompt, such as 2,4,8."),
    ] = "4",
) -> None:
    """Find a model's thresholds for balanced and fast attention.

    It writes them to the model's folder; a cluster reads them when it comes up.
    """
    try:
        wanted = [int(each) for each in degrees.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{degrees!r} is no list of numbers such as 2,4,8", param_hint="--sp-degree"
        ) from None
    if min(wanted) < 2:
        raise typer.BadParameter("thresholds matter from SP degree 2 on", param_hint="--sp-degree")

    from sps2.cli.bench import thresholds
    from sps2.common.text.tokens import Tokenizer

    folder = locate(model)
    llama = thresholds.load_float32(model)
    if tokens > llama.config.max_context:
        raise Invalid(f"{tokens} tokens are over the model's context, {llama.config.max_context}")
    ids = thresholds.document(tokens, Tokenizer(folder).encode)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    found: dict[str, dict[str, object]] = {"balanced": {}, "fast": {}}
    with Progress(*columns, TimeElapsedColumn(), console=render.err) as bars:
        for degree in wanted:
            task = bars.add_task(f"SP degree {degree}", total=None)

            def report(done: int, total: int, task: object = task) -> None:
                bars.update(task, completed=done, total=total)  # type: ignore[arg-type]

            for setting, selection in thresholds.calibrate(llama, ids, degree, report).items():
                found[setting][str(degree)] = selection
    made = Calibration(fingerprint(folder), found, "relative")  # type: ignore[arg-type]
    path = folder / FILE
    path.write_bytes(msgspec.json.format(msgspec.json.encode(made)) + b"\n")
    render.out.print(_table(made))
    render.note(f"written to {path}")


def _table(made: Calibration) -> Table:
    table = Table("setting", "SP degree", "drop, by layer")
    for setting, by_degree in made.selections.items():
        for degree, selection in by_degree.items():
            table.add_row(setting, degree, " ".join(f"{each:g}" for each in selection.drop))
    return table
