import typing

import msgspec
import pytest

from sps2.common import api
from sps2.common.api import ChatRequest, CompletionRequest, Parameters, usage
from sps2.common.errors import Invalid


def fault(body, kind=CompletionRequest):
    with pytest.raises(Invalid) as caught:
        api.parse(body, kind)
    return caught.value.field, caught.value.code


def test_parses_every_form_of_prompt():
    for prompt in ("x", ["x", "y"], [1, 2], [[1], [2, 3]]):
        body = msgspec.json.encode({"prompt": prompt})
        assert api.parse(body, CompletionRequest).prompt == prompt


def test_names_the_field():
    assert fault(b'{"prompt": "x", "top_p": 2}') == ("top_p", "invalid_value")
    assert fault(b'{"prompt": "x", "topp": 2}') == ("topp", "unknown_field")
    assert fault(b'{"prompt": "x", "sps2": {"a": 2}}') == ("sps2.a", "unknown_field")
    assert fault(b"{}") == ("prompt", "missing_field")
    assert fault(b'{"prompt": "x", "logit_bias": {"7": 999}}') == ("logit_bias", "invalid_value")
    assert fault(b'{"messages": [{"role": "user"}]}', ChatRequest) == (
        "messages[0].content",
        "missing_field",
    )


def test_names_a_kind_of_content_that_is_not_supported():
    body = b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}'
    with pytest.raises(Invalid, match="image_url"):
        api.parse(body, ChatRequest)


def test_null_is_absent():
    nulls = dict.fromkeys(Parameters.__struct_fields__)
    assert api.check(nulls | {"prompt": "x"}, CompletionRequest) == CompletionRequest(prompt="x")


def test_says_what_is_wrong_with_the_body():
    assert fault(b"{") == (None, "invalid_json")
    assert fault(b'{"prompt": "\xff"}') == (None, "invalid_utf8")
    assert fault(b"[" * 100_000) == (None, "invalid_value")


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        ('{"', '": 1, "prompt": "x"}', "unknown_field"),
        ('{"prompt": "x", "sps2": {"', '": 1}}', "unknown_field"),
        ('{"prompt": "x", "sps2": {"attention": "', '"}}', "invalid_value"),
    ],
    ids=["name", "nested", "value"],
)
@pytest.mark.parametrize("char", ["k", "`", "'", "\\n", "é"])
def test_an_error_is_short_whatever_was_sent(before, after, code, char):
    """A name of 16 MB was looked up for a minute, and sent back twice."""
    with pytest.raises(Invalid) as caught:
        api.parse((before + char * 200_000 + after).encode(), CompletionRequest)
    assert caught.value.code == code
    assert len(str(caught.value)) < 1000
    assert len(caught.value.field) < 1000


def test_every_answer_survives_the_wire():
    kinds = [
        each
        for each in vars(api).values()
        if isinstance(each, type)
        and issubclass(each, msgspec.Struct)
        and each.__module__.startswith(api.__name__)
    ]
    assert len(kinds) >= 30
    _, schemas = msgspec.json.schema_components(kinds, ref_template="{name}")
    assert {each.__name__ for each in kinds} <= set(schemas)
    assert all(each.__struct_config__.frozen for each in kinds)
    assert all(each.__struct_config__.forbid_unknown_fields for each in kinds)
    assert typing.get_type_hints(usage.Usage)
