"""`spsctl complete`: continues a prompt, streaming."""

import os
import stat
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from sps2.cli import prefill_bar
from sps2.cli.answer_output import Shown
from sps2.cli.target import ConfigOption, NameOption, reachable
from sps2.common.errors import Invalid
from sps2.common.messages import Setting

STDIN = Path("-")

MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", "-n", min=1, help="Maximum length of the answer, in tokens."),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        "-t",
        min=0.0,
        max=2.0,
        help="Sampling temperature; 0 always takes the likeliest token.",
        show_default="the model's",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        min=0.0,
        max=1.0,
        help="Sample from the likeliest tokens that have this probability together.",
        show_default="the model's",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        help="Seed of the sampling: the same seed gives the same answer.",
        show_default="another each time",
    ),
]
SpDegree = Annotated[
    int | None,
    typer.Option(
        "--sp-degree",
        min=1,
        help="Prefill shards that share the prompt.",
        show_default="the scheduler decides",
    ),
]
Attention = Annotated[
    Setting | None,
    typer.Option(
        "--attention",
        help="How much attention the prefill may leave out.",
        show_default="the cluster's",
    ),
]
File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        help="A document to put before the prompt; - reads standard input.",
        dir_okay=False,
    ),
]


def complete(
    prompt: Annotated[
        str | None,
        typer.Argument(help="Text to continue. Piped text goes before it; - is the piped text."),
    ] = None,
    file: File = None,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    sp_degree: SpDegree = None,
    attention: Attention = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole answer as one OpenAI object.")
    ] = False,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Continue a text. The answer streams to standard output.

    Where stderr is a terminal, it shows how much of the prompt has been read, and after the answer
    what it took.
    """
    from sps2.common.client import Client

    text = read(prompt, file)
    settings = parameters(max_tokens, temperature, top_p, seed, sp_degree, attention)
    cluster = reachable(name, config)
    with Client(cluster.gateway_addresses, cluster.bus) as client:
        if as_json:
            print(msgspec.json.encode(client.complete(text, **settings)).decode())
            return
        shown = Shown(max_tokens)
        try:
            with prefill_bar.shown() as waiting:
                for chunk in client.complete_stream(text, **prefill_bar.watched(settings)):
                    waiting.take(chunk)
                    shown.take(chunk, [choice.text for choice in chunk.choices])
        finally:
            shown.end()


def read(prompt: str | None, file: Path | None) -> str:
    """The text to send: the document, the piped text, and the prompt, as far as there are any.

    Raises:
        BadParameter: there is nothing to send, or standard input is named twice.
        Invalid: the file cannot be read, or is not text.
    """
    if prompt == "-" and file == STDIN:
        raise typer.BadParameter("standard input can be read once: as PROMPT, or as --file")
    piped = piped_text() if is_piped() or prompt == "-" or file == STDIN else ""
    parts = [
        "" if file is None or file == STDIN else _document(file),
        piped,
        "" if prompt in (None, "-") else prompt,
    ]
    text = "\n\n".join(filter(None, parts))
    if not text:
        raise typer.BadParameter("there is nothing to send: give a PROMPT, a --file, or pipe text")
    return text


def is_piped() -> bool:
    """Whether standard input is a pipe, file or socket, not a terminal or /dev/null."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def piped_text() -> str:
    """Read all of standard input. Raises Invalid if it is not text."""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise Invalid(f"standard input is not UTF-8 text: {error.reason}") from error


def _document(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise Invalid(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"{file} is not UTF-8 text: {error.reason}") from error


def parameters(
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    sp_degree: int | None,
    attention: str | None,
) -> dict[str, Any]:
    """The options that `complete` and `chat` share as API fields, without absent ones."""
    given = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    extension = {"sp_degree": sp_degree, "attention": attention}
    if chosen := {name: value for name, value in extension.items() if value is not None}:
        settings["sps2"] = chosen
    return settings
