"""`spsctl`: the commands, and how their errors reach a person."""

import errno
from collections.abc import Callable
from functools import wraps
from importlib.metadata import version as version_of
from typing import Any

import typer

from sps2.cli import (
    chat,
    complete,
    configuration,
    doctor,
    down,
    logs,
    profile,
    pull,
    render,
    status,
    up,
)
from sps2.cli.bench import quality
from sps2.cli.top.command import top
from sps2.cli.trace.command import trace
from sps2.common.errors import ServiceError


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with expected errors printed as one line and turned into exit code 1."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except ServiceError as error:
            render.say_error(f"error: {error}")
            raise typer.Exit(1) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # `spsctl logs | head`
                raise
            render.say_error(f"error: {error}")
            raise typer.Exit(1) from error

    return run


app = typer.Typer(
    name="spsctl",
    help="Serve a language model on a sequence-parallel cluster, and look after it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def version() -> None:
    """Print the version."""
    print(version_of("sps2"))


for command in (
    pull.pull,
    up.up,
    down.down,
    status.status,
    top,
    trace,
    logs.logs,
    chat.chat,
    complete.complete,
    doctor.doctor,
    profile.profile,
    configuration.config,
    version,
):
    app.command()(reported(command))

benchmarks = typer.Typer(help="Measure the model and this machine.", no_args_is_help=True)
benchmarks.command()(reported(quality.quality))
app.add_typer(benchmarks, name="bench")


if __name__ == "__main__":
    app()
