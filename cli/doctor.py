"""`spsctl doctor`: checks whether this machine can serve, and says what to do if not."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.text import Text

from sps2.cli import render
from sps2.cli.doctor_findings import Finding
from sps2.common import config as configuration


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of findings.")] = False,
    config: Annotated[
        Path | None, typer.Option(help="The configuration that this machine is to serve.")
    ] = None,
    keys: Annotated[
        str | None, typer.Option(help="Folder of the keys, made by `spsctl keys init`.")
    ] = None,
) -> None:
    """Check this machine. Exit code 1 if something that is needed is broken."""
    from sps2.cli import checks

    cluster = configuration.load(config, keys=keys)
    findings: list[Finding] = []
    # one console for both: rows from another would be drawn into the spinner's line
    console = render.err if as_json else render.out
    with console.status("checking"):
        for finding in checks.run_all(cluster):
            findings.append(finding)
            if not as_json:
                _print(finding.check, finding.verdict, finding.detail)
    if as_json:
        print(msgspec.json.encode(findings).decode())
    if any(finding.verdict == "broken" for finding in findings):
        raise typer.Exit(1)


def _print(check: str, verdict: str, detail: str) -> None:
    colour = {"ok": "green", "warning": "yellow", "broken": "red"}[verdict]
    row = Text.assemble((f"{verdict:8}", colour), " ", (f"{check:16}", "bold"), f" {detail}")
    render.out.print(row, soft_wrap=True)
