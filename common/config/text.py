"""A configuration as text, for `spsctl config` and for the files of a run."""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from msgspec.inspect import LiteralType, Metadata, StructType, Type

from sps2.common.config import Cluster
from sps2.common.config.sections import Section


class Key(NamedTuple):
    """One key of a table, with its value."""

    name: str
    value: object
    type: Type
    meaning: str
    environment: str
    """The environment variable that is read if the key is absent; empty if none is."""

    @property
    def text(self) -> str:
        """The value as TOML."""
        return msgspec.json.encode(self.value).decode()

    @property
    def choices(self) -> list[str]:
        """The literal values that the key may have; empty if there are none."""
        return sorted(map(str, self.type.values)) if isinstance(self.type, LiteralType) else []


def keys_of(section: Section) -> Iterator[Key]:
    """The keys of a table in the file's order, without its sub-tables."""
    info = msgspec.inspect.type_info(type(section))
    assert isinstance(info, StructType)
    for field in info.fields:
        value, kind = getattr(section, field.name), field.type
        if isinstance(value, Section):
            continue
        meta = kind if isinstance(kind, Metadata) else Metadata(kind)
        meaning = (meta.extra_json_schema or {}).get("description", "")
        environment = (meta.extra or {}).get("environment", "")
        yield Key(field.name, value, meta.type, meaning, environment)


def tables_of(cluster: Cluster) -> Iterator[tuple[str, Section]]:
    """The tables of the file by name; the first has an empty name and the top-level keys."""
    yield "", cluster
    for name in cluster.__struct_fields__:
        if isinstance(value := getattr(cluster, name), Section):
            yield name, value


def example() -> str:
    """A complete configuration file: every key at its default, with its meaning above it."""
    return dump(Cluster(), "Configuration of an SPS2 cluster: every key, at its default.")


def dump(cluster: Cluster, title: str) -> str:
    """A configuration as the file that `load` reads back, with every key's meaning above it."""
    lines = [f"# {title}"]
    for name, section in tables_of(cluster):
        lines += ["", *([f"[{name}]  # {type(section).__doc__}"] if name else [])]
        for key in keys_of(section):
            choices = f" ({', '.join(key.choices)})" if key.choices else ""
            lines += [f"# {key.meaning}{choices}", f"{key.name} = {key.text}"]
    return "\n".join(lines) + "\n"
