"""Writes docs/configuration.md: the reference of the configuration as Markdown."""

import inspect

from msgspec.inspect import (
    BoolType,
    FloatType,
    IntType,
    LiteralType,
    Metadata,
    Type,
    UnionType,
    VarTupleType,
)

from sps2.cli.effective import KEYS
from sps2.cli.up import up
from sps2.common.config import ENVIRONMENT, Cluster
from sps2.common.config.text import Key, keys_of, tables_of

HEAD = """\
# Configuration

`spsctl config --reference` makes this page from `common/config`.

`spsctl config > cluster.toml` writes a file with every key, and `spsctl up --config cluster.toml`
uses one. A file needs only the keys that differ from their defaults. A key that is misspelt, or a
value out of range, is an error that names it. Flags of `spsctl up` override the file. `--port`, or
`port` of `[gateway]`, sets the HTTP port and moves those of the other services after it, unless the
file names them.

`spsctl up --hosts hosts.toml` takes the numbers of shards and every `host` from the list of hosts
([nodes.md](nodes.md#over-ssh)).
"""
ENVIRONMENT_HEAD = """\
## Environment

UCX's own variables are in [nodes.md](nodes.md#data-plane), those of OpenTelemetry in
[operating.md](operating.md#where-the-time-of-a-request-went).

| variable | meaning |
|---|---|
"""


def reference() -> str:
    """The page: all keys by table, with type, default, meaning, and the flag or variable."""
    flags = flags_by_key()
    parts = [HEAD]
    for name, section in tables_of(Cluster()):
        title = f"`[{name}]`" if name else "Top of the file"
        about = "" if name == "" else f"{type(section).__doc__}\n\n"
        rows = [_row(key, flags.get((name, key.name), "")) for key in keys_of(section)]
        parts.append(
            f"## {title}\n\n{about}| key | type | default | meaning | also set by |\n"
            f"|---|---|---|---|---|\n{''.join(rows)}"
        )
    variables = [f"| `{name}` | {meaning} |\n" for name, meaning in ENVIRONMENT.items()]
    return "\n".join([*parts, ENVIRONMENT_HEAD + "".join(variables)])


def flags_by_key() -> dict[tuple[str, str], str]:
    """Flags of `spsctl up` by table and key; one not in `KEYS` sets the first key of its name."""
    found = {}
    for parameter in inspect.signature(up).parameters:
        flag = parameter.rstrip("_")
        wanted = KEYS.get(flag, flag)
        for name, section in tables_of(Cluster()):
            if wanted in {key.name for key in keys_of(section)}:
                found[name, wanted] = f"--{flag.replace('_', '-')}"
                break
    return found


def _row(key: Key, flag: str) -> str:
    set_by = ", ".join(f"`{way}`" for way in (flag, key.environment) if way)
    kind = ", ".join(f"`{choice}`" for choice in key.choices) or _kind(key.type)
    return f"| `{key.name}` | {kind} | `{key.text}` | {key.meaning} | {set_by} |\n"


def _kind(kind: Type) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(map(_kind, kind.types))
    if isinstance(kind, Metadata):
        return _kind(kind.type)
    if isinstance(kind, LiteralType):
        return ", ".join(f"`{each}`" for each in kind.values)
    if isinstance(kind, VarTupleType):
        return "list of texts"
    if isinstance(kind, BoolType):
        return "`true` or `false`"
    if not isinstance(kind, IntType | FloatType):
        return "text"
    number = "integer" if isinstance(kind, IntType) else "number"
    if kind.gt is not None:
        return f"{number} over {kind.gt:g}"
    if kind.ge is None:
        return number
    return (
        f"{number}, {kind.ge} or more" if kind.le is None else f"{number}, {kind.ge} to {kind.le}"
    )
