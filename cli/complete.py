"""`spsctl complete`: continues a prompt, streaming."""

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from sps2.cli import reading, render
from sps2.cli.target import ConfigOption, NameOption, reachable
from sps2.common.errors import Invalid
from sps2.common.messages import Setting

MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", "-m", min=1, help="length of the answer at most")
]
Temperature = Annotated[
    float | None, typer.Option("--temperature", "-t", min=0.0, max=2.0, help="0 is greedy")
]
Seed = Annotated[int | None, typer.Option("--seed", help="makes sampling repeatable")]
SpDegree = Annotated[
    int | None, typer.Option("--sp-degree", min=1, help="prefill shards to use, else the policy's")
]
Attention = Annotated[
    Setting | None,
    typer.Option("--attention", help="how much prefill may leave out; else the cluster's setting"),
]


def complete(
    prompt: Annotated[
        str | None, typer.Argument(help="text to continue; - reads standard input")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="a document to put before the prompt", dir_okay=False),
    ] = None,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = None,
    seed: Seed = None,
    sp_degree: SpDegree = None,
    attention: Attention = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="the whole answer as one OpenAI object")
    ] = False,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Continue a text. The answer streams to standard output."""
    from sps2.common.client import Client

    text = read(prompt, file)
    settings = parameters(max_tokens, temperature, seed, sp_degree, attention)
    cluster = reachable(name, config)
    with Client(cluster.gateway_address, cluster.bus) as client:
        if as_json:
            print(msgspec.json.encode(client.complete(text, **settings)).decode())
            return
        with reading.shown() as waiting:
            for chunk in client.complete_stream(text, **reading.watched(settings)):
                waiting.take(chunk)
                for choice in chunk.choices:
                    print(choice.text, end="", flush=True)
    print()


def read(prompt: str | None, file: Path | None) -> str:
    """The text to send: a document, if there is one, and the prompt or standard input after it.

    Raises:
        Invalid: the file cannot be read, or there is nothing to send.
    """
    if prompt is None and file is None:
        raise typer.BadParameter("give a PROMPT, - for standard input, or --file")
    try:
        parts = [] if file is None else [file.read_text(encoding="utf-8")]
        parts += [] if prompt is None else [sys.stdin.read() if prompt == "-" else prompt]
    except OSError as error:
        raise Invalid(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"{file or 'standard input'} is not UTF-8 text: {error.reason}") from error
    text = "\n\n".join(parts)
    if not text:
        raise Invalid("there is nothing to continue: the prompt is empty")
    return text


def parameters(
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    sp_degree: int | None,
    attention: str | None,
) -> dict[str, Any]:
    """What was given of the options that `complete` and `chat` share, as the API names it."""
    given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    extension = {"sp_degree": sp_degree, "attention": attention}
    if asked := {name: value for name, value in extension.items() if value is not None}:
        settings["sps2"] = asked
    return settings


def footer(usage: Any) -> None:
    """One dim line on stderr about what an answer took."""
    if usage is None or usage.sps2 is None or not render.err.is_terminal:
        return
    places = len({place.shard for place in usage.sps2.placements})
    cached = usage.prompt_tokens_details.cached_tokens
    prompt = f"{usage.prompt_tokens} ({cached} cached)" if cached else f"{usage.prompt_tokens}"
    render.err.print(
        f"{prompt} + {usage.completion_tokens} tokens, first after "
        f"{usage.sps2.ttft_ms / 1000:.2f} s, SP degree {usage.sps2.sp_degree}, "
        f"{usage.sps2.attention} attention by {usage.sps2.method}, "
        f"KV on {places} {'shard' if places == 1 else 'shards'}",
        style="dim",
    )
