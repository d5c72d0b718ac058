"""`spsctl config`: the documented example configuration."""

from typing import Annotated

import typer

from sps2.cli.reference import reference as as_markdown
from sps2.common.config import text as config_text


def config(
    reference: Annotated[
        bool, typer.Option("--reference", help="Print it as Markdown: docs/configuration.md.")
    ] = False,
) -> None:
    """Print a configuration file with every key, its default and its meaning."""
    print(as_markdown() if reference else config_text.example(), end="")
