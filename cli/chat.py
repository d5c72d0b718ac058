"""`spsctl chat`: a conversation in the terminal, or one question and its answer."""

import readline  # noqa: F401  gives `input` its line editing and history
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sps2.cli import prefill_bar, render
from sps2.cli.answer_output import Shown
from sps2.cli.complete import (
    Attention,
    File,
    MaxTokens,
    Seed,
    SpDegree,
    Temperature,
    TopP,
    is_piped,
    parameters,
    read,
)
from sps2.cli.target import ConfigOption, NameOption, reachable
from sps2.common.errors import ServiceError

if TYPE_CHECKING:
    from sps2.common.client import Client, Turn

HELP = (
    "/exit ends, /reset forgets the conversation; Ctrl-C stops an answer. "
    'Lines between """ and """, or with \\ at their end, are one message'
)
LEAVE = "Ctrl-C again, Ctrl-D or /exit ends the conversation"
FENCE = '"""'
INTERRUPTED = 130
"""The exit code after Ctrl-C."""


def chat(
    message: Annotated[
        str | None,
        typer.Argument(
            help="One question. Piped text goes before it; - is the piped text. Without "
            "either a conversation starts."
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="Instructions to the model (the system message).")
    ] = None,
    file: File = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    sp_degree: SpDegree = None,
    attention: Attention = None,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Talk to the model.

    Where stderr is a terminal, it shows how much of the prompt has been read, and after the answer
    what it took. With both in a pipe, the answer is all that is printed.
    """
    from sps2.common.client import Client

    question = None
    if message is not None or is_piped():
        question = read(message, file)
    cluster = reachable(name, config)
    settings = parameters(max_tokens, temperature, top_p, seed, sp_degree, attention)
    turns: list[Turn] = [{"role": "system", "content": system}] if system else []
    with Client(cluster.gateway_addresses, cluster.bus) as client:
        if question is not None:
            turns.append({"role": "user", "content": question})
            if not answer(client, turns, settings).whole:
                raise typer.Exit(INTERRUPTED)
            return
        document = "" if file is None else read(None, file)
        render.err.print(
            f"{cluster.model} at {cluster.http_url}. {HELP}", style="dim", markup=False
        )
        converse(client, turns, settings, document)


def converse(
    client: "Client", turns: list["Turn"], settings: dict[str, Any], document: str = ""
) -> None:
    """Read messages and answer them until the user leaves. An error ends only one answer.

    Args:
        document: is put before the first message.
    """
    start = list(turns)
    leaving = False
    while True:
        try:
            text = next_message()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            if leaving:
                return
            leaving = True
            render.err.print(LEAVE, style="dim")
            continue
        leaving = False
        if text in ("/exit", "/quit"):
            return
        if text == "/reset":
            turns[:] = start
        elif text.startswith("/"):
            render.err.print(HELP, style="dim", markup=False)
        elif text:
            if document and turns == start:
                text = f"{document}\n\n{text}"
            turns.append({"role": "user", "content": text})
            try:
                reply = answer(client, turns, settings)
            except ServiceError as error:
                turns.pop()
                render.say_error(f"error: {error}")
                continue
            if reply.text:
                turns.append({"role": "assistant", "content": reply.text})
            else:
                turns.pop()


def next_message() -> str:
    """Read the user's next message, of one or several lines."""
    line = input("> ").strip()
    if line.startswith(FENCE):
        lines = [line.removeprefix(FENCE)]
        while not lines[-1].endswith(FENCE):
            lines.append(input(". ").rstrip())
        return "\n".join(lines).removesuffix(FENCE).strip()
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        lines.append(input(". ").rstrip())
    return "\n".join(lines)


class Reply(NamedTuple):
    """The text of an answer; `whole` unless the user stopped it."""

    text: str
    whole: bool


def answer(client: "Client", turns: list["Turn"], settings: dict[str, Any]) -> Reply:
    """Stream one answer to standard output. Ctrl-C cancels it; the text so far is returned."""
    shown, note = Shown(settings.get("max_tokens")), ""
    try:
        with prefill_bar.shown() as waiting:
            for chunk in client.chat_stream(turns, **prefill_bar.watched(settings)):
                waiting.take(chunk)
                deltas = [choice.delta for choice in chunk.choices]
                shown.think(delta.reasoning_content or "" for delta in deltas)
                shown.take(chunk, [delta.content or "" for delta in deltas])
    except KeyboardInterrupt:
        note = " [stopped]"
    except ServiceError:
        if shown.text:
            shown.end()
        raise
    shown.end(note)
    return Reply(shown.text, not note)
