"""docs/api.md lists every field of a request, as the types have them."""

from pathlib import Path

import pytest

from sps2.common.api import reference
from sps2.common.api.conversation import Message, TextPart
from sps2.common.api.requests import (
    ChatRequest,
    CompletionRequest,
    Extension,
    Parameters,
    StreamOptions,
)
from sps2.common.api.usage import Sps2Usage

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


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
    for other in (StreamOptions, Message, TextPart, Extension):
        assert listed[reference.HEADS[other]] == set(other.__struct_fields__)


def test_everything_of_usage_is_there() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert not [name for name in Sps2Usage.__struct_fields__ if f"`{name}`" not in page]


def test_a_page_without_a_place_for_them_is_refused() -> None:
    with pytest.raises(ValueError, match="fields: begin"):
        reference.written("# The API\n")
