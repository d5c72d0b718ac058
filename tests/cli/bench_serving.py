"""Runs of `spsctl bench serve`."""

import json
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner, Result

from sps2.cli.bench.serve.command import serve
from sps2.cli.main import reported
from sps2.cli.usage import Command

from .foreign import Foreign

APP = typer.Typer()
APP.command(cls=Command)(reported(serve))
SMALL = ("--num-prompts", 6, "--random-input-len", 40, "--random-output-len", 5)
"""Flags of a short run."""


def run(server: Foreign | None, *arguments: object) -> Result:
    where = [] if server is None else ["--base-url", server.url]
    return CliRunner().invoke(APP, [*where, *map(str, arguments)])


def measured(server: Foreign, folder: Path, *arguments: object) -> dict[str, Any]:
    """The result file of a run that went well."""
    small = SMALL if "--dataset-name" not in arguments else ()
    saved = ("--save-result", "--save-detailed", "--result-dir", folder)
    result = run(server, *saved, "--result-filename", "r.json", *small, *arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads((folder / "r.json").read_text())
    return found
