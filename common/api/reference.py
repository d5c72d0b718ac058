"""The fields of requests as Markdown: the tables of docs/api.md.

`python -m sps2.common.api.reference docs/api.md` writes them anew.
"""

import sys
from pathlib import Path

import msgspec
from msgspec.inspect import Metadata, StructType

from sps2.common.api.conversation import Message, TextPart
from sps2.common.api.requests import (
    ChatRequest,
    CompletionRequest,
    Extension,
    Parameters,
    StreamOptions,
)
from sps2.common.api.tolerance import only_of

BEGIN, END = "<!-- fields: begin -->\n", "<!-- fields: end -->\n"
HEADS = {
    CompletionRequest: "`POST /v1/completions`",
    ChatRequest: "`POST /v1/chat/completions`",
    Parameters: "Both",
    StreamOptions: "`stream_options`",
    Message: "A message",
    TextPart: "A part of a message's content",
    Extension: "`sps2`",
}


def tables() -> str:
    """A table for each type of `HEADS`: its fields, and what becomes of each."""
    return "\n".join(_table(kind, head) for kind, head in HEADS.items())


def written(page: str) -> str:
    """A page with its tables made anew. ValueError if it has no place for them."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"the page has no {BEGIN.strip()} and {END.strip()}")
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def _table(kind: type, head: str) -> str:
    is_kind_of = issubclass(kind, Parameters) and kind is not Parameters
    shared = Parameters.__struct_fields__ if is_kind_of else ()
    rows = [_row(kind, name, about) for name, about in _fields(kind).items() if name not in shared]
    rows.sort(key=lambda row: ("| supported |" not in row, "| ignored |" not in row))
    return f"### {head}\n\n| field | handling | meaning |\n|---|---|---|\n{''.join(rows)}"


def _fields(kind: type) -> dict[str, tuple[str, bool]]:
    """Of each field what it means, and whether it is ignored."""
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, StructType)
    found = {}
    for field in info.fields:
        described, ignored = "", False
        parts = [field.type, *getattr(field.type, "types", ())]
        for part in parts:
            if isinstance(part, Metadata):
                described = (part.extra_json_schema or {}).get("description", "") or described
                ignored = bool((part.extra or {}).get("ignored")) or ignored
        found[field.encode_name] = described.removeprefix("ignored: "), ignored
    return found


def _row(kind: type, name: str, about: tuple[str, bool]) -> str:
    meaning, ignored = about
    if (restricted := only_of(kind).get(name)) is not None:
        taken = ", ".join(f"`{value}`" for value in restricted.taken)
        return f"| `{name}` | refused unless {taken or '`null`'} | {restricted.why} |\n"
    return f"| `{name}` | {'ignored' if ignored else 'supported'} | {meaning} |\n"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
