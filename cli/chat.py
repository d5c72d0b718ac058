"""`spsctl chat`: a conversation in the terminal, or one question and its answer."""

import readline  # noqa: F401  gives `input` its line editing and history
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sps2.cli import reading, render
from sps2.cli.complete import (
    Attention,
    MaxTokens,
    Seed,
    SpDegree,
    Temperature,
    footer,
    parameters,
    read,
)
from sps2.cli.target import ConfigOption, NameOption, reachable
from sps2.common.errors import ServiceError

if TYPE_CHECKING:
    from sps2.common.client import Client, Turn

HELP = "/exit ends, /reset forgets the conversation; Ctrl-C interrupts an answer"


def chat(
    message: Annotated[
        str | None,
        typer.Argument(help="one question; - reads standard input; none starts a conversation"),
    ] = None,
    system: Annotated[str | None, typer.Option(help="instructions to the model")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="a document to talk about", dir_okay=False),
    ] = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = None,
    seed: Seed = None,
    sp_degree: SpDegree = None,
    attention: Attention = None,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Talk to the model."""
    from sps2.common.client import Client

    cluster = reachable(name, config)
    settings = parameters(max_tokens, temperature, seed, sp_degree, attention)
    turns: list[Turn] = [{"role": "system", "content": system}] if system else []
    with Client(cluster.gateway_address, cluster.bus) as client:
        if message is not None:
            turns.append({"role": "user", "content": read(message, file)})
            answer(client, turns, settings)
            return
        document = "" if file is None else read(None, file)
        render.err.print(f"{cluster.model} at {cluster.http_url}. {HELP}", style="dim")
        converse(client, turns, settings, document)


def converse(
    client: "Client", turns: list["Turn"], settings: dict[str, Any], document: str = ""
) -> None:
    """Read and answer until the user has enough; an error ends one answer, not the conversation.

    Args:
        document: goes before the first question.
    """
    start = list(turns)
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text in ("/exit", "/quit"):
            return
        if text == "/reset":
            turns[:] = start
        elif text.startswith("/"):
            render.err.print(HELP, style="dim")
        elif text:
            if document and turns == start:
                text = f"{document}\n\n{text}"
            turns.append({"role": "user", "content": text})
            try:
                reply = answer(client, turns, settings)
            except ServiceError as error:
                turns.pop()
                render.say_error(f"error: {error}")
            else:
                turns.append({"role": "assistant", "content": reply})


def answer(client: "Client", turns: list["Turn"], settings: dict[str, Any]) -> str:
    """Stream one answer to standard output; Ctrl-C cancels it and keeps what has come."""
    pieces: list[str] = []
    usage = None
    try:
        with reading.shown() as waiting:
            for chunk in client.chat_stream(turns, **reading.watched(settings)):
                waiting.take(chunk)
                for choice in chunk.choices:
                    piece = choice.delta.content or ""
                    pieces.append(piece)
                    print(piece, end="", flush=True)
                usage = chunk.usage or usage
    except KeyboardInterrupt:
        print(" [interrupted]", end="")
    print()
    footer(usage)
    return "".join(pieces)
