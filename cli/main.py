"""`spsctl`: its commands, and the display of their errors."""

import errno
from collections.abc import Callable
from functools import wraps
from importlib.metadata import version as version_of
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from sps2.cli import (
    cache,
    calibrate,
    chat,
    complete,
    configuration,
    doctor,
    down,
    drain,
    duty,
    explain,
    invitation,
    logs,
    models,
    plan,
    profile,
    pull,
    recordings,
    render,
    restart,
    simulate,
    status,
    up,
)
from sps2.cli.bench import accuracy, quality
from sps2.cli.bench.serve.command import serve
from sps2.cli.join.command import join
from sps2.cli.keys import api, client, folder
from sps2.cli.launch import SERVER
from sps2.cli.top.command import top
from sps2.cli.trace.command import trace
from sps2.cli.usage import Command
from sps2.common.errors import ServiceError


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command: expected errors are printed as one line and become exit code 1."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except ServiceError as error:
            render.say_error(f"error: {error}")
            raise typer.Exit(1) from error
        except ModuleNotFoundError as error:
            if find_spec("torch") is not None:
                raise
            render.say_error(f"error: {error.name} is not installed here; {SERVER}")
            raise typer.Exit(1) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # `spsctl logs | head`
                raise
            render.say_error(f"error: {error}")
            raise typer.Exit(1) from error

    return run


app = typer.Typer(
    name="spsctl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(version_of("sps2"))
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Serve a language model on a sequence-parallel cluster, and look after it."""


for command in (
    pull.pull,
    models.models,
    models.rm,
    up.up,
    invitation.invite,
    join,
    down.down,
    status.status,
    top,
    trace,
    explain.explain,
    duty.duty,
    drain.drain,
    restart.restart,
    logs.logs,
    chat.chat,
    complete.complete,
    doctor.doctor,
    profile.profile,
    simulate.simulate,
    plan.plan,
    calibrate.calibrate,
    configuration.config,
):
    app.command(cls=Command)(reported(command))

benchmarks = typer.Typer(help="Measure a server under load, or a model.", no_args_is_help=True)
benchmarks.command(cls=Command)(reported(serve))
benchmarks.command("accuracy", cls=Command)(reported(accuracy.measure))
benchmarks.command(cls=Command)(reported(quality.quality))
app.add_typer(benchmarks, name="bench")

scheduler = typer.Typer(help="Record and replay what the scheduler decides.", no_args_is_help=True)
scheduler.command(cls=Command)(reported(recordings.record))
scheduler.command(cls=Command)(reported(recordings.replay))
app.add_typer(scheduler, name="scheduler")

caches = typer.Typer(help="List, drop and pin cached pages of KV.", no_args_is_help=True)
caches.command("list", cls=Command)(reported(cache.show))
caches.command(cls=Command)(reported(cache.drop))
caches.command(cls=Command)(reported(cache.pin))
caches.command(cls=Command)(reported(cache.unpin))
app.add_typer(caches, name="cache")

keys = typer.Typer(help="Make, list and revoke keys.", no_args_is_help=True)
keys.command(cls=Command)(reported(folder.init))
clients = typer.Typer(help="Keys for the SDK and spsctl elsewhere.", no_args_is_help=True)
clients.command(cls=Command)(reported(client.add))
clients.command("list", cls=Command)(reported(client.show))
clients.command(cls=Command)(reported(client.revoke))
keys.add_typer(clients, name="client")
api_keys = typer.Typer(help="API keys for HTTP.", no_args_is_help=True)
api_keys.command(cls=Command)(reported(api.add))
api_keys.command("list", cls=Command)(reported(api.show))
api_keys.command(cls=Command)(reported(api.revoke))
keys.add_typer(api_keys, name="api")
app.add_typer(keys, name="keys")


if __name__ == "__main__":
    app()
