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


PROMPT, MESSAGES = {"prompt": "x"}, {"messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        (CompletionRequest, PROMPT),
        (ChatRequest, MESSAGES),
        (api.Tokenize, PROMPT),
        (api.Detokenize, {"tokens": [1]}),
        (api.StreamOptions, {}),
        (api.Extension, {}),
        (api.Message, MESSAGES["messages"][0]),
        (api.TextPart, {"text": "x"}),
    ],
)
def test_null_is_absent_for_every_field(kind, needed):
    """`prompt: null` was "Expected `str | array`, got `null`"."""
    assert api.check(dict.fromkeys(kind.__struct_fields__) | needed, kind) == api.check(
        needed, kind
    )
    for field in msgspec.structs.fields(kind):
        if field.required:
            body = msgspec.json.encode(needed | {field.name: None})
            assert fault(body, kind) == (field.name, "missing_field")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"temperature": 3}, "`temperature` must be a number from 0 to 2"),
        ({"temperature": "hot"}, "`temperature` must be a number from 0 to 2, not text"),
        ({"n": 4.5}, "`n` must be a whole number of at least 1, not a fraction"),
        ({"top_k": 2**31}, "`top_k` must be a whole number from -1 to 2147483647"),
        ({"seed": 2**63}, "`seed` must be a whole number of 64 bits"),
        ({"stream": 1}, "`stream` must be true or false, not a whole number"),
        ({"cache_salt": ""}, "`cache_salt` must be text of 1 to 1024 characters"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be a number over 0, up to 100"),
        ({"stop": ["a", None]}, "`stop[1]` must be text of up to 1024 characters, not null"),
        ({"stop_token_ids": [-1]}, "`stop_token_ids[0]` must be a token id"),
        ({"logit_bias": {"5": 101}}, "a value of `logit_bias` must be a number from -100 to 100"),
        ({"prompt": [[1], ["x"]]}, "`prompt[1][0]` must be a token id, not text"),
        ({"sps2": {"sp_degree": 0}}, "`sps2.sp_degree` must be a whole number from 1 to 4096"),
        (
            {"sps2": {"attention": 4}},
            "`sps2.attention` must be `balanced`, `exact` or `fast`, not a whole number",
        ),
        (
            {"sps2": {"traceparent": "00-7"}},
            "`sps2.traceparent` must be a W3C traceparent (`00-`, then 32, 16 and 2 hexadecimal "
            "digits with `-` between them)",
        ),
    ],
)
def test_tells_what_a_value_must_be_in_words(fields, told):
    """Types of Python and regular expressions were told."""
    with pytest.raises(Invalid) as caught:
        api.parse(msgspec.json.encode(PROMPT | fields), CompletionRequest)
    assert str(caught.value) == told
    with pytest.raises(Invalid) as caught:
        api.check(PROMPT | fields, CompletionRequest)
    assert str(caught.value) == told


def test_tells_what_a_body_must_be():
    with pytest.raises(Invalid, match=r"^the body must be an object, not a list$"):
        api.parse(b"[]", CompletionRequest)
