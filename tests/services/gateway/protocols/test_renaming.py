"""Errors name the fields of the client's protocol."""

from typing import Any

import pytest

from sps2.common.errors import Invalid
from sps2.services.gateway.protocols.renaming import in_words_of, renamed

NAMES = {"messages": "input", "format": "text.format", "format.json": "text.format"}


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("messages", "input"),
        ("messages[0].content", "input[0].content"),
        ("format.type", "text.format.type"),
        ("format.json.schema", "text.format.schema"),
        ("formats", "formats"),
        ("content.messages", "content.messages"),
        (None, None),
    ],
)
def test_fields_are_renamed(field, wanted):
    error = in_words_of(Invalid(f"`{field}` or `x` is bad", field, "code"), NAMES)
    assert (error.message, error.field) == (f"`{wanted}` or `x` is bad", wanted)
    assert error.code == "code"


async def test_chunks_are_passed_on_and_closed():
    closed = []

    async def chunks() -> Any:
        try:
            yield 1
            raise Invalid("`messages` is bad", "messages")
        finally:
            closed.append(True)

    made: Any = renamed(chunks(), NAMES)
    assert await anext(made) == 1
    with pytest.raises(Invalid, match="`input` is bad"):
        await anext(made)
    early: Any = renamed(chunks(), NAMES)
    await anext(early)
    await early.aclose()
    assert closed == [True, True]
