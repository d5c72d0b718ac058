"""`spsctl keys client`: keys for the SDK and for `spsctl` on other machines."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from sps2.cli import render
from sps2.cli.keys.folder import KeysOption, keyring_of

NameArgument = Annotated[str, typer.Argument(help="Name of the client.")]


def add(
    name: NameArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; else NAME.key here.")
    ] = None,
    folder: KeysOption = None,
) -> None:
    """Add a client, and write its key file. It takes effect at once."""
    path = out or Path(f"{name}.key")
    keyring_of(folder).add_client(name, path)
    render.out.print(
        f"{path} is the key of {name}: SPS2_KEYS={path}, or `keys` in [bus]. Keep it secret.",
        markup=False,
        soft_wrap=True,
    )


def show(folder: KeysOption = None) -> None:
    """List the clients."""
    table = render.table("CLIENT", "SINCE", "PUBLIC KEY")
    for name, client in keyring_of(folder).clients().items():
        table.add_row(name, client.created, Text(client.public))  # it may look like markup
    render.show(table)


def revoke(name: NameArgument, folder: KeysOption = None) -> None:
    """Revoke a client's key. It takes effect within seconds, on open connections too."""
    keyring_of(folder).revoke_client(name)
    render.out.print(f"Revoked client {name}.", markup=False)
