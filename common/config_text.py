"""A configuration as text: what `spsctl config` prints, and what the files of a run say."""

import msgspec

from sps2.common.config import Cluster
from sps2.common.sections import Section


def example() -> str:
    """A complete configuration file: every key at its default, with its meaning above it."""
    return dump(Cluster(), "Configuration of an SPS2 cluster: every key, at its default.")


def dump(cluster: Cluster, title: str) -> str:
    """A configuration as the file that `load` reads back, with every key's meaning above it."""
    return "\n".join([f"# {title}", "", *_table(cluster)]) + "\n"


def _table(section: Section, name: str = "") -> list[str]:
    lines = [f"[{name}]  # {type(section).__doc__}"] if name else []
    nested: list[str] = []
    info = msgspec.inspect.type_info(type(section))
    assert isinstance(info, msgspec.inspect.StructType)
    for field in info.fields:
        value = getattr(section, field.name)
        if isinstance(value, Section):
            nested += ["", *_table(value, field.name)]
            continue
        kind = field.type
        text = (
            (kind.extra_json_schema or {}).get("description", "")
            if isinstance(kind, msgspec.inspect.Metadata)
            else ""
        )
        inner = kind.type if isinstance(kind, msgspec.inspect.Metadata) else kind
        if isinstance(inner, msgspec.inspect.LiteralType):
            text += f" ({', '.join(sorted(map(str, inner.values)))})"
        lines += [f"# {text}", f"{field.name} = {msgspec.json.encode(value).decode()}"]
    return lines + nested
