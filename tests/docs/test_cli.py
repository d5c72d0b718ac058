"""docs/cli.md is what the generator makes, and has what `--help` shows."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sps2.cli.command_reference import reference
from sps2.cli.main import app

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## spsctl (.*?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S))


def test_the_page_is_as_the_commands_are() -> None:
    assert reference() == PAGE, "run `python -m sps2.cli.command_reference docs/cli.md`"


@pytest.mark.parametrize("command", SECTIONS)
def test_every_option_of_the_help_is_there(command: str) -> None:
    shown = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    wanted = set(re.findall(r"^[│ ]*[* ]*(--[\w-]+)", shown.output, flags=re.M)) - {"--help"}
    written = set(re.findall(r"^\| .*?`(--[\w-]+)`", SECTIONS[command], flags=re.M))
    assert wanted == written
