"""Grammars are written as meant, and wrong ones are refused with a reason."""

import json

import pytest

from sps2.common.errors import Invalid
from sps2.common.grammar import check, choice, json_object, json_schema, lark, regex
from sps2.common.text.tokens import Tokenizer

NODE = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
LIST = {"$ref": "#/$defs/list", "$defs": {"list": {"type": "array", "items": {"$ref": "#"}}}}
OPTIONAL = {"properties": {f"p{each}": {"type": "null"} for each in range(2500)}, "type": "object"}
EITHER = {
    "$ref": "#/$defs/tree",
    "$defs": {
        "tree": {"anyOf": [{"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/fork"}]},
        "leaf": {"type": "integer"},
        "fork": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "minItems": 2},
    },
}


@pytest.fixture(scope="module")
def tokenizer(checkpoint) -> Tokenizer:
    return Tokenizer(checkpoint("llama3"))


def follows(grammar: str, text: str, tokenizer: Tokenizer) -> bool:
    """Whether `text` is a whole text of the grammar."""
    matcher = tokenizer.grammars.matcher(grammar)
    ids = tokenizer.encode(text, add_special_tokens=False)
    try:
        matcher.advance(*ids, tokenizer.eos_ids[0])
    except Exception:
        return False
    return True


def test_any_object_is_a_json_object(tokenizer):
    assert follows(json_object(), '{"a": [1, null, {"b": "c"}]}', tokenizer)
    assert not follows(json_object(), "[1]", tokenizer)


def test_a_schema_decides_and_allows_layouts(tokenizer):
    grammar = json_schema({"type": "object", "properties": {"a": {"type": "integer"}}})
    assert follows(grammar, '{"a":1}', tokenizer)
    assert follows(grammar, '{\n  "a": 1\n}', tokenizer)
    assert not follows(grammar, '{"a":"1"}', tokenizer)


def test_whitespace_has_an_end(tokenizer):
    grammar = json_object()
    assert follows(grammar, '{ "a" : 1 }', tokenizer)
    assert follows(grammar, '{\r\n\t"a": 1\n' + 32 * " " + "}", tokenizer)
    assert not follows(grammar, "{  }", tokenizer)
    assert not follows(grammar, "{\n\n}", tokenizer)
    assert not follows(grammar, "{\n" + 33 * " " + "}", tokenizer)


def test_whitespace_is_as_requested(tokenizer):
    schema = {"type": "array", "items": {"type": "integer"}}
    assert not follows(json_schema(schema, None), "[1, 2]", tokenizer)
    assert follows(json_schema(schema, "_"), "[1,_2]", tokenizer)


@pytest.mark.parametrize("text", ["ab", 'a"b', "a\\b", "é 😀", "a/b", "line\nline", "<|end|>"])
def test_a_choice_is_one_of_its_options(tokenizer, text):
    grammar = choice(["other", text])
    matcher = tokenizer.grammars.matcher(grammar)
    matcher.advance(*tokenizer.encode(text, False, parse_special_tokens=False))
    assert matcher.ended
    assert not follows(grammar, "othe", tokenizer)


def test_a_regex_matches_as_a_whole(tokenizer):
    assert follows(regex("a/[0-9]{2}"), "a/12", tokenizer)
    assert follows(regex("^[0-9]+$"), "12", tokenizer)
    assert not follows(regex("[0-9]{2}"), "123", tokenizer)


def test_lark_has_rules(tokenizer):
    grammar = lark('start: word ("," word)*\nword: /[a-z]+/')
    assert follows(grammar, "ab,c", tokenizer)
    assert not follows(grammar, "ab,", tokenizer)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: regex("[a"), "unclosed character class"),
        (lambda: regex("(?=a)b"), "look-ahead"),
        (lambda: lark("start: nothing"), "unknown name"),
        (lambda: lark('root ::= "a"'), "GBNF"),
        (lambda: choice([]), "nothing to choose"),
        (lambda: json_schema({"type": "text"}), "Invalid type: text"),
        (lambda: json_schema({"type": "integer", "minimum": 2, "maximum": 1}), "Unsatisfiable"),
        (lambda: json_schema({"not": {"type": "null"}}), "not"),
        (lambda: json_schema({"$ref": "http://elsewhere/schema"}), "elsewhere"),
        (lambda: json_schema({"$ref": "#"}), "endless"),
        (lambda: json_schema(NODE), "endless"),
        (lambda: json_schema({"enum": ["x" * 150_000]}), "too large"),
        (lambda: json_schema(OPTIONAL), "too complex"),
    ],
)
def test_wrong_grammars_are_refused(tokenizer, make, why):
    with pytest.raises(Invalid, match=why):
        check(make(), tokenizer)


def test_a_schema_that_is_nested_too_deeply_is_refused(tokenizer):
    schema: dict[str, object] = {}
    for _ in range(3000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(Invalid, match="nested too deeply"):
        json_schema(schema)


def test_long_chains_of_rules_are_followed(tokenizer):
    """In a process of their own they would end it, without threads of large stacks."""
    places = range(1100)
    links = {f"d{each}": {"$ref": f"#/$defs/d{each + 1}"} for each in places}
    for each, link in links.items():
        links[each] = {"type": "object", "properties": {"x": link}, "required": ["x"]}
    links["d1100"] = {"type": "null"}
    check(json_schema({"$ref": "#/$defs/d0", "$defs": links}), tokenizer)
    check(
        lark("start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in places) + "r1100: /a/"), tokenizer
    )


@pytest.mark.parametrize("schema", [LIST, EITHER, {**NODE, "required": []}])
def test_recursion_with_an_end_is_followed(tokenizer, schema):
    check(json_schema(schema), tokenizer)


def test_a_lenient_schema_leaves_out_what_cannot_be_guaranteed(tokenizer):
    schema = {"type": "string", "not": {"const": "a"}, "maxLength": 2}
    grammar = json_schema(schema, lenient=True)
    assert follows(grammar, '"a"', tokenizer)
    assert not follows(grammar, '"abc"', tokenizer)


def test_a_grammar_is_text_of_json():
    assert json.loads(lark('start: "a"')) == {"grammars": [{"lark_grammar": 'start: "a"'}]}
