"""`spsctl doctor`: whether this machine can serve, and what to do if not."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from sps2.cli import render
from sps2.cli.finding import Finding
from sps2.common import config as configuration


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="a list of findings")] = False,
    config: Annotated[Path | None, typer.Option(help="the configuration to check for")] = None,
    keys: Annotated[str | None, typer.Option(help="folder of `spsctl keys init`")] = None,
) -> None:
    """Check this machine. Exit code 1 if something that is needed is broken."""
    from sps2.cli import checks

    cluster = configuration.load(config, keys=keys)
    findings: list[Finding] = []
    with render.err.status("checking"):
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
    render.out.print(f"[{colour}]{verdict:8}[/] [bold]{check:16}[/] ", end="")
    render.out.print(detail, markup=False, soft_wrap=True)
