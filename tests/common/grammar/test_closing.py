"""Objects have the properties that their schema lists, unless it says otherwise."""

import pytest

from sps2.common.grammar.closing import closed

SIZE = {"type": "object", "properties": {"size": {"type": "integer"}}, "required": ["size"]}
SHUT = {**SIZE, "additionalProperties": False}
NAME = {"properties": {"name": {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (SIZE, SHUT),
        ({"type": "array", "items": SIZE}, {"type": "array", "items": SHUT}),
        ({"anyOf": [SIZE, {"type": "null"}]}, {"anyOf": [SHUT, {"type": "null"}]}),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": SIZE}, "description": "A size."},
            {"$ref": "#/$defs/a", "$defs": {"a": SHUT}, "description": "A size."},
        ),
        (
            {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": SIZE}},
            {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": SHUT}},
        ),
        ({"properties": {}}, {"properties": {}, "additionalProperties": False}),
    ],
    ids=["object", "array", "either", "reference", "one part", "empty"],
)
def test_objects_are_closed(schema, expected):
    assert closed(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {**SIZE, "additionalProperties": True},
        {**SIZE, "additionalProperties": {"type": "string"}},
        {**SIZE, "patternProperties": {"^x": {}}},
        {**SIZE, "required": ["other"]},
        {**SIZE, "minProperties": 2},
        {"allOf": [SIZE, NAME]},
        {**SIZE, "anyOf": [NAME, {}]},
        {**SIZE, "$ref": "#/$defs/a", "$defs": {"a": NAME}},
        {"$ref": "#/$defs/a", "required": ["other"], "$defs": {"a": SIZE}},
        {"anyOf": [SIZE], "oneOf": [NAME, {}]},
        {"type": "array", "items": {"allOf": [{"$ref": "#/$defs/a"}, NAME]}, "$defs": {"a": SIZE}},
        {"enum": [{"properties": {"a": 1}}]},
        {"type": "object", "default": SIZE},
        {"properties": [], "items": 3, "anyOf": {}},
    ],
)
def test_what_may_have_others_is_left_alone(schema):
    assert closed(schema) == schema


def test_properties_named_like_keywords_are_no_keywords():
    names = {"type": "object", "properties": {"allOf": SIZE, "properties": {"type": "string"}}}
    inner = {"allOf": SHUT, "properties": {"type": "string"}}
    assert closed(names) == {**names, "properties": inner, "additionalProperties": False}
