"""The folder of `spsctl keys`, and `spsctl keys init`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from sps2.cli import render
from sps2.common import places
from sps2.common.errors import Invalid
from sps2.common.keys.keyring import Keyring

KeysOption = Annotated[
    Path | None,
    typer.Option("--keys", help="Folder of the keys; else $SPS2_KEYS, else ~/.config/sps2/keys."),
]


def keyring_of(folder: Path | None) -> Keyring:
    """The keyring in the folder of `--keys`, or its default. Raises Invalid if it is a file."""
    named = os.environ.get("SPS2_KEYS")
    path = folder or (Path(named).expanduser() if named else places.keys())
    if not folder and not named and path != places.lasting_keys():
        render.note(
            f"The keys are still in {path}, where a program that clears caches may delete them. "
            f"Move the folder to {places.lasting_keys()}, and name that in configurations and "
            "commands that name the old one."
        )
    if path.is_file():
        raise Invalid(f"{path} is a key, not the folder of a cluster's keys: name that with --keys")
    return Keyring(path)


def init(
    folder: KeysOption = None,
    name: Annotated[
        str, typer.Option("--name", help="Name of the cluster, for messages.")
    ] = "default",
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace the key; services and clients need new ones."),
    ] = False,
) -> None:
    """Make the key that all services of a cluster share."""
    ring = keyring_of(folder)
    ring.make(name, force)
    render.out.print(
        f"{ring.cluster} is the cluster's key. Every host of the cluster needs it; whoever has it "
        "is a part of the cluster.",
        markup=False,
        soft_wrap=True,
    )
    option = "" if folder is None else f" --keys {folder}"
    for what, command in (
        ("start", f"spsctl up --keys {ring.folder} --host ADDRESS"),
        ("HTTP", f"spsctl keys api add NAME{option}"),
        ("SDK, spsctl elsewhere", f"spsctl keys client add NAME{option}"),
    ):
        render.out.print(f"  {what:23} {command}", markup=False, soft_wrap=True)
