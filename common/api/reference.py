"""Writes the tables of docs/api.md: the fields of requests, and those that SPS2 adds to answers.

`python -m sps2.common.api.reference docs/api.md` updates the page.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.inspect import Metadata, StructType

from sps2.common.api.answers import Estimate, Text, Tokens
from sps2.common.api.conversation import Message, TextPart
from sps2.common.api.embeddings import EmbeddingExtension, EmbeddingRequest
from sps2.common.api.progress import PrefillProgress
from sps2.common.api.prompt_answers import PromptLogprob
from sps2.common.api.requests import (
    ChatRequest,
    CompletionRequest,
    Detokenize,
    EstimateRequest,
    Extension,
    Parameters,
    StreamOptions,
    Tokenize,
)
from sps2.common.api.structured import JsonSchema, ResponseFormat, StructuredOutputs
from sps2.common.api.tools import (
    AllowedTools,
    Function,
    FunctionCall,
    NamedTool,
    Tool,
    ToolCall,
)
from sps2.common.api.unsupported_fields import only_of
from sps2.common.api.usage import Part, Sps2Usage, Usage
from sps2.common.api.words import in_words

BEGIN, END = "<!-- fields: begin -->\n", "<!-- fields: end -->\n"
HEADS = {
    CompletionRequest: "`POST /v1/completions`",
    ChatRequest: "`POST /v1/chat/completions`",
    Parameters: "Both",
    StreamOptions: "`stream_options`",
    Message: "A message",
    TextPart: "A part of a message's content",
    ResponseFormat: "`response_format`",
    JsonSchema: "`json_schema` of a `response_format`",
    StructuredOutputs: "`structured_outputs`",
    Tool: "An item of `tools`",
    Function: "`function` of a tool",
    NamedTool: "A `tool_choice` that names functions",
    AllowedTools: "`allowed_tools` of a `tool_choice`",
    ToolCall: "An item of `tool_calls`",
    FunctionCall: "`function` of a call",
    Extension: "`sps2`",
    EstimateRequest: "`POST /v1/estimate`",
    EmbeddingRequest: "`POST /v1/embeddings`",
    EmbeddingExtension: "`sps2` of an embedding",
    Tokenize: "`POST /tokenize`",
    Detokenize: "`POST /detokenize`",
}
"""Types of requests, by heading."""
ANSWERS = {
    Usage: "`usage`",
    Sps2Usage: "`usage.sps2`",
    Part: "An item of `placements`",
    PromptLogprob: "A token in `prompt_logprobs`",
    PrefillProgress: "`sps2.progress` of a chunk",
    Estimate: "The answer of `/v1/estimate`",
    Tokens: "The answer of `/tokenize`",
    Text: "The answer of `/detokenize`",
}
"""Types that SPS2 adds to OpenAI's answers, by heading."""


def tables() -> str:
    """The tables as Markdown: request fields with their handling, then answer fields."""
    sent = [_table(kind, head) for kind, head in HEADS.items()]
    answered = [_answer(kind, head) for kind, head in ANSWERS.items()]
    return "\n".join(["## Fields of requests\n", *sent, "## Fields of answers\n", *answered])


def written(page: str) -> str:
    """The page with its tables updated. ValueError if it lacks the markers around them."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"the page has no {BEGIN.strip()} and {END.strip()}")
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def _table(kind: type, head: str) -> str:
    bases = [each for each in (Parameters, Extension) if issubclass(kind, each) and kind != each]
    shared = {name for each in bases for name in each.__struct_fields__}
    rows = [_row(kind, name, about) for name, about in _fields(kind).items() if name not in shared]
    rows.sort(key=lambda row: ("| supported |" not in row, "| ignored |" not in row))
    return (
        f"### {head}\n\n| field | handling | value | meaning |\n|---|---|---|---|\n{''.join(rows)}"
    )


def _answer(kind: type, head: str) -> str:
    rows = [
        f"| `{name}` | {about.value} | {about.meaning} |\n" for name, about in _fields(kind).items()
    ]
    return f"### {head}\n\n| field | value | meaning |\n|---|---|---|\n{''.join(rows)}"


class _About(NamedTuple):
    """A field's meaning, whether it is ignored, and the values it may have."""

    meaning: str
    ignored: bool
    value: str


def _fields(kind: type) -> dict[str, _About]:
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
        value = in_words(field.type, null=kind in ANSWERS)
        found[field.encode_name] = _About(described.removeprefix("ignored: "), ignored, value)
    return found


def _row(kind: type, name: str, about: _About) -> str:
    if (restricted := only_of(kind).get(name)) is not None:
        accepted = ", ".join(f"`{value}`" for value in restricted.accepted)
        return f"| `{name}` | refused | unless {accepted or '`null`'} | {restricted.why} |\n"
    if about.ignored:
        return f"| `{name}` | ignored | | {about.meaning} |\n"
    return f"| `{name}` | supported | {about.value} | {about.meaning} |\n"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
