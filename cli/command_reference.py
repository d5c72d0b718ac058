"""Writes docs/cli.md: the commands of `spsctl` as Markdown.

`python -m sps2.cli.command_reference docs/cli.md` updates it.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from sps2.cli.main import app

Command = Callable[..., Any]

HEAD = """\
# Commands

`python -m sps2.cli.command_reference docs/cli.md` makes this page from `spsctl` itself.

`spsctl COMMAND --help` shows the same. Exit codes are 0 for success, 1 for failure (`status` and
`top --once` also where the cluster is not ready), and 2 for wrong usage. `status`, `top`, `trace`,
`doctor` and `complete` print JSON with `--json`. `spsctl --install-completion` makes the shell
complete commands, options, clusters and services.

Several clusters can run at once, each with its own `--name` and `--port`. Commands that talk to a
cluster take `--name` (or SPS2_CLUSTER), or `--config` for a cluster that was started elsewhere.
"""


def reference() -> str:
    """The page: all commands with their arguments and options."""
    commands = dict(_commands(app, "spsctl"))
    rows = [
        f"| [`{name}`](#{_anchor(name)}) | {_first(call)} |\n" for name, call in commands.items()
    ]
    index = "| command | what it does |\n|---|---|\n" + "".join(rows)
    return "\n".join([HEAD, index, *map(_section, commands, commands.values())])


def _commands(group: typer.Typer, name: str) -> Iterator[tuple[str, Command]]:
    """The commands of a group and of its sub-groups, in the order of `--help`."""
    for command in group.registered_commands:
        call = command.callback
        assert call is not None
        yield f"{name} {command.name or call.__name__.replace('_', '-')}", call
    for below in group.registered_groups:
        assert below.typer_instance is not None
        yield from _commands(below.typer_instance, f"{name} {below.name}")


class Parameter(NamedTuple):
    """An argument or option of a command."""

    parameter: inspect.Parameter
    kind: Any
    info: ArgumentInfo | OptionInfo

    @property
    def word(self) -> str:
        """The placeholder of an argument in usage lines."""
        return self.info.metavar or self.parameter.name.upper()

    @property
    def flags(self) -> list[str]:
        """The spellings of an option."""
        given = (self.info.default, *(self.info.param_decls or ()))  # typer's order
        if found := [name for name in given if isinstance(name, str)]:
            return [each for name in found for each in name.split("/")]
        word = self.parameter.name.replace("_", "-")
        return [f"--{word}", f"--no-{word}"] if self.kind is bool else [f"--{word}"]

    @property
    def has_default(self) -> bool:
        return self.parameter.default is not inspect.Parameter.empty


def _parameters(call: Command) -> list[Parameter]:
    hints = get_type_hints(call, include_extras=True)
    found = []
    for parameter in inspect.signature(call).parameters.values():
        kind, info = get_args(hints[parameter.name])
        if not info.hidden:
            found.append(Parameter(parameter, kind, info))
    return found


def _section(name: str, call: Command) -> str:
    parameters = _parameters(call)
    options = [_option(one) for one in parameters if isinstance(one.info, OptionInfo)]
    arguments = [one for one in parameters if isinstance(one.info, ArgumentInfo)]
    usage = [name, *(["[OPTIONS]"] if options else []), *map(_usage, arguments)]
    parts = [
        f"## {name}\n",
        f"{inspect.getdoc(call)}\n",
        f"```console\n$ {' '.join(usage)}\n```\n",
    ]
    if arguments:
        parts.append("| argument | meaning |\n|---|---|\n" + "".join(map(_argument, arguments)))
    if options:
        parts.append(
            f"| option | value | default | meaning |\n|---|---|---|---|\n{''.join(options)}"
        )
    return "\n".join(parts)


def _usage(argument: Parameter) -> str:
    return f"[{argument.word}]" if argument.has_default else argument.word


def _argument(argument: Parameter) -> str:
    return f"| `{argument.word}` | {_meaning(argument.info)} |\n"


def _option(option: Parameter) -> str:
    names = ", ".join(f"`{name}`" for name in option.flags)
    cells = (names, _value(option), _default(option), _meaning(option.info))
    return f"| {' | '.join(cells)} |\n"


def _meaning(info: ArgumentInfo | OptionInfo) -> str:
    meaning = " ".join((info.help or "").split()).replace("|", "\\|")
    return f"{meaning} (or {info.envvar})" if info.envvar else meaning


def _value(option: Parameter) -> str:
    """The values that an option accepts, in words; empty for a flag."""
    kinds = [kind for kind in get_args(option.kind) if kind is not type(None)]
    kind = kinds[0] if get_origin(option.kind) in (UnionType, Union) else option.kind
    if kind is bool:
        return ""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) is list:
        return "text, repeatable"
    word = {int: "integer", float: "number", Path: "path"}.get(kind, "text")
    least, most = option.info.min, option.info.max
    if least is None:
        return word
    return f"{word}, {least:g} or more" if most is None else f"{word}, {least:g} to {most:g}"


def _default(option: Parameter) -> str:
    if not option.has_default:
        return "required"
    if isinstance(option.info.show_default, str):
        return option.info.show_default
    value = option.parameter.default
    return "" if value is None or isinstance(value, bool) else f"`{value}`"


def _first(call: Command) -> str:
    return " ".join((inspect.getdoc(call) or "").split("\n\n")[0].split())


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
