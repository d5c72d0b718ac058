"""Plain words for wrong values of options, where Typer has its validator's messages."""

import re
from typing import Any

import typer
from typer.core import TyperCommand

BOUNDS = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "more than",
    "less than": "less than",
}
_BOUND = re.compile(rf"Input should be ({'|'.join(BOUNDS)}) (\S+)")
_KIND = re.compile(r"Input should be a valid (\w+).*")
KINDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}


class Command(TyperCommand):
    """A command whose errors are in plain words."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = in_words(error.message)
            raise


def in_words(said: str) -> str:
    """What is wrong with a value; messages that are not the validator's are unchanged."""
    said = said.removeprefix("Value error, ")
    if bound := _BOUND.fullmatch(said):
        return f"it must be {BOUNDS[bound[1]]} {bound[2]}"
    if kind := _KIND.fullmatch(said):
        return f"it must be {KINDS.get(kind[1], kind[1])}"
    return said
