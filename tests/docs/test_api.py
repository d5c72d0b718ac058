"""docs/api.md lists every field of a request, as the types have them."""

import ast
import re
from pathlib import Path

import msgspec
import pytest

from sps2.common.api import Text, Tokens, parsing, reference
from sps2.common.api.conversation import Message, TextPart
from sps2.common.api.progress import PrefillProgress
from sps2.common.api.requests import (
    ChatRequest,
    CompletionRequest,
    Detokenize,
    Extension,
    Parameters,
    StreamOptions,
    Tokenize,
)
from sps2.common.api.usage import Part, Sps2Usage, Usage

from ..sources import tree_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "api.md"


def test_the_page_is_as_the_types_are() -> None:
    page = PAGE.read_text(encoding="utf-8")
    wanted = "run `python -m sps2.common.api.reference docs/api.md`"
    assert reference.written(page) == page, wanted


def fields_by_head() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for section in reference.tables().split("### ")[1:]:
        head, *lines = section.splitlines()
        found[head] = {line.split("`")[1] for line in lines if line.startswith("| `")}
    return found


def test_every_field_is_listed() -> None:
    listed = fields_by_head()
    both = listed[reference.HEADS[Parameters]]
    assert both == set(Parameters.__struct_fields__)
    for kind in (ChatRequest, CompletionRequest):
        own = listed[reference.HEADS[kind]]
        assert not own & both
        assert own | both == set(kind.__struct_fields__)
    for other in (StreamOptions, Message, TextPart, Extension, Tokenize, Detokenize):
        assert listed[reference.HEADS[other]] == set(other.__struct_fields__)
    for answer in (Usage, Sps2Usage, Part, PrefillProgress, Tokens, Text):
        assert listed[reference.ANSWERS[answer]] == set(answer.__struct_fields__)


def test_a_page_without_a_place_for_them_is_refused() -> None:
    with pytest.raises(ValueError, match="fields: begin"):
        reference.written("# The API\n")


def codes() -> set[str]:
    """Words for programs that errors over HTTP have."""
    found: set[str] = set()
    for folder in ("common/api", "services/gateway", "services/scheduler"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(tree_of(path)):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                    name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                    place = {"Invalid": 2, "Problem": 3, "Unauthorised": 1, "_refuse": 2}.get(name)
                    given = node.args[place : place + 1] if place is not None else []
                    found |= {each.value for each in given if isinstance(each, ast.Constant)}
    return found - {"request_not_found", None}  # the first is told on the bus alone


def test_every_code_is_listed() -> None:
    page = PAGE.read_text(encoding="utf-8")
    errors = page[page.index("## Errors") : page.index("## Text and tokens")]
    assert len(codes()) > 15
    assert codes() | {parsing.UNSUPPORTED, parsing.UNKNOWN, parsing.MISSING} <= set(
        re.findall("`([a-z0-9_]+)`", errors)
    )


def test_limits_are_listed() -> None:
    rows = {line.split("`")[1]: line for line in reference.tables().splitlines() if "| `" in line}
    for name, limits in {
        "temperature": "from 0 to 2 ",
        "top_logprobs": "from 0 to 20 ",
        "presence_penalty": "from -2 to 2 ",
        "logit_bias": "up to 1024 numbers from -100 to 100 ",
        "n": "`gateway.max_choices` (16 ",
        "cache_salt": "1 to 1024 characters",
    }.items():
        assert limits in rows[name], name


def test_every_field_of_an_answer_is_described() -> None:
    _, schemas = msgspec.json.schema_components(reference.ANSWERS, ref_template="{name}")
    for kind in reference.ANSWERS:
        properties = schemas[kind.__name__]["properties"]
        assert not [name for name, about in properties.items() if not about.get("description")]
    assert "`csa`" in schemas["Sps2Usage"]["properties"]["method"]["description"]
