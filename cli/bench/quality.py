"""`spsctl bench quality`: the quality of prefill settings, and the bytes that they send."""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from sps2.cli import render
from sps2.cli.bench import documents as texts
from sps2.cli.bench import settings as names
from sps2.cli.bench.needles import TEAMS, Prompt, hidden_in, prompts
from sps2.cli.bench.results import Measured, Report
from sps2.cli.bench.table import tables_of
from sps2.common.errors import Invalid
from sps2.common.model.config import read
from sps2.common.models import fingerprint, locate
from sps2.services.scheduler import csa_thresholds

if TYPE_CHECKING:
    from sps2.common.text.tokens import Tokenizer

Dtype = Literal["float32", "bfloat16", "float16"]
Spans = Literal["scheduler", "even"]
DEFAULT_SETTINGS = "exact,int8,balanced,fast,csa:drop=.25,hire:budget=.3,strided:budget=.25,star"


def quality(
    model: Annotated[str, typer.Option(help="A model as for `spsctl pull`.")] = "smollm2-135m",
    tokens: Annotated[
        str, typer.Option(help="Lengths of prompts in tokens, such as 2048,8000.")
    ] = "2048",
    degrees: Annotated[
        str,
        typer.Option("--sp-degree", help="Prefill shards that share a prompt, such as 2,4,8."),
    ] = "4",
    settings: Annotated[
        str,
        typer.Option(
            help=f"Settings to compare: {', '.join(names.SETTINGS)}; :NAME=VALUE,... may follow."
        ),
    ] = DEFAULT_SETTINGS,
    documents: Annotated[
        str, typer.Option(help=f"Documents: {', '.join(texts.BUILT_IN)}, or paths of text files.")
    ] = ",".join(texts.BUILT_IN),
    needles: Annotated[
        bool, typer.Option(help="Hide facts in the documents, and ask for them.")
    ] = True,
    questions: Annotated[
        int,
        typer.Option(
            min=1,
            max=len(TEAMS),
            help="Number of questions about facts, each with its own prefill.",
        ),
    ] = 2,
    dtype: Annotated[
        Dtype, typer.Option(help="Type to compute in; float32 shows the effect of a setting alone.")
    ] = "float32",
    spans: Annotated[
        Spans,
        typer.Option(help="How spans are cut; scheduler: as in a cluster; even: equal lengths."),
    ] = "scheduler",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Write all results to this file as JSON, as they are found."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write pictures (PNG) to this folder.")] = None,
) -> None:
    """Compare prefill settings with exact attention: quality, bytes, needles kept."""
    if plot is not None and find_spec("matplotlib") is None:
        raise Invalid("--plot needs matplotlib; get it with `pip install 'sps2[bench]'`")
    lengths, groups = _numbers("tokens", tokens), _numbers("sp-degree", degrees)
    folder = locate(model)
    config = read(folder)
    wanted = names.split(settings)
    try:
        for each in wanted:
            names.scheme_of(each, config.layers)
    except Invalid as error:
        raise typer.BadParameter(str(error), param_hint="--settings") from error
    for length in lengths:
        if length > config.max_context:
            raise typer.BadParameter(
                f"{model} was made for {config.max_context} tokens, not {length}",
                param_hint="--tokens",
            )
        if length < 128 * max(groups):
            raise typer.BadParameter(
                f"{length} tokens are too few for {max(groups)} shards", param_hint="--tokens"
            )
    found = _read(documents)

    from sps2.cli.bench.measure import Work, measure  # import torch, which --help can do without
    from sps2.common.model.weights import load
    from sps2.common.text.tokens import Tokenizer

    calibration = csa_thresholds.load(folder, fingerprint(folder))
    work = Work(load(folder, dtype), wanted, groups, spans == "even", calibration)
    tokenizer = Tokenizer(folder)
    report = Report(version("sps2"), model, dtype, tuple(found), (), ())
    with render.err.status("") as status:
        for length in lengths:
            by_document = _prompts(tokenizer, found, length, questions if needles else 0)
            for case in measure(work, length, by_document, status.update):
                report = _with(report, case)
                if out is not None:  # after each case, since a long run may be ended early
                    out.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    for block in tables_of(report, render.width()):
        render.show(block)
    if plot is not None:
        from sps2.cli.bench.plots import draw

        for path in draw(report, plot):
            print(path)


def _with(report: Report, case: Measured) -> Report:
    if case.document:
        return msgspec.structs.replace(report, cases=(*report.cases, case))
    return msgspec.structs.replace(report, pooled=(*report.pooled, case))


def _numbers(name: str, text: str) -> list[int]:
    try:
        numbers = [int(each) for each in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is no list of numbers such as 2,4,8", param_hint=f"--{name}"
        ) from error
    if min(numbers) < 1:
        raise typer.BadParameter("the numbers must be at least 1", param_hint=f"--{name}")
    return numbers


def _read(documents: str) -> dict[str, str]:
    """Texts by name; a built-in one that is not on this machine is reported and left out."""
    found: dict[str, str] = {}
    for name in filter(None, documents.split(",")):
        try:
            found[Path(name).name] = texts.read(name)
        except Invalid as error:
            if name not in texts.BUILT_IN:
                raise
            render.say_error(f"left out: {error}")
    if not found:
        raise Invalid("no document is left to measure on")
    return found


def _prompts(
    tokenizer: "Tokenizer", found: dict[str, str], length: int, questions: int
) -> dict[str, list[Prompt]]:
    """Prompts by document; each document has questions for other needles."""
    made: dict[str, list[Prompt]] = {}
    for place, (name, text) in enumerate(found.items()):
        hidden = hidden_in(name) if questions else []
        step = len(TEAMS) // max(1, questions)
        wanted = [hidden[(place + index * step) % len(TEAMS)] for index in range(questions)]
        try:
            made[name] = prompts(tokenizer, text, length, hidden, wanted)
        except Invalid as error:
            render.say_error(f"left out at {length} tokens: {name}: {error}")
    if not made:
        raise Invalid(f"no document has {length} tokens")
    return made
