"""Requests set the grammar of their answers in OpenAI's and vLLM's fields; wrong ones get a 400."""

import asyncio
import threading

import httpx
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from sps2.common.grammar import (
    Grammars,
    choice,
    json_object,
    json_schema,
    lark,
    regex,
)

CHAT, COMPLETIONS, ESTIMATE = "/v1/chat/completions", "/v1/completions", "/v1/estimate"
HI = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
NOT = {"type": "string", "not": {"const": "a"}}


def format_of(schema: object, **more: object) -> dict[str, object]:
    named = {"name": "thing", "schema": schema, **more}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


@pytest.fixture
async def http(door):
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        yield http


ANY_OBJECT = {"type": "object"}
MADE = [
    ({"response_format": {"type": "text"}}, ""),
    ({"response_format": None, "guided_json": None}, ""),
    ({"guided_decoding_backend": "xgrammar"}, ""),
    ({"structured_outputs": {"json_object": False, "choice": ["a"]}}, choice(["a"])),
    ({"response_format": {"type": "json_object"}}, json_object()),
    (format_of(SCHEMA, strict=True, description="a thing"), json_schema(SCHEMA)),
    (format_of(NOT, strict=False), json_schema(NOT, lenient=True)),
    ({"structured_outputs": {"json": SCHEMA}}, json_schema(SCHEMA)),
    ({"structured_outputs": {"json": '{"type": "object"}'}}, json_object()),
    (
        {"structured_outputs": {"json_object": True, "disable_any_whitespace": True}},
        json_schema(ANY_OBJECT, None),
    ),
    (
        {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " ?"}},
        json_schema(SCHEMA, " ?"),
    ),
    ({"structured_outputs": {"regex": "[0-9]+"}}, regex("[0-9]+")),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, lark('start: "a"')),
    ({"guided_json": SCHEMA, "guided_whitespace_pattern": " "}, json_schema(SCHEMA, " ")),
    ({"guided_regex": "a+"}, regex("a+")),
    ({"guided_choice": ["a", "b"]}, choice(["a", "b"])),
    ({"guided_grammar": "start: /b/"}, lark("start: /b/")),
]


@pytest.mark.parametrize(("fields", "grammar"), MADE)
async def test_a_grammar_reaches_the_shards(http, door, fields, grammar):
    for path, body in ((CHAT, {"messages": [HI]}), (COMPLETIONS, {"prompt": "hi", "n": 2})):
        answer = await http.post(path, json=body | fields)
        assert answer.status_code == 200, answer.text
        assert (await http.post(ESTIMATE, json=body | fields | {"n": 1})).status_code == 200
    assert [submit.sampling.grammar for submit in door.play.submitted] == [grammar] * 5


async def test_objects_have_no_properties_but_those_of_their_schema(http, door):
    """Clients make schemas of classes, and seldom forbid further properties."""
    shut = json_schema({**SCHEMA, "additionalProperties": False})
    await http.post(CHAT, json={"messages": [HI], **format_of(SCHEMA)})
    assert door.play.submitted[-1].sampling.grammar == shut
    either = {**SCHEMA, "additionalProperties": True}
    await http.post(CHAT, json={"messages": [HI], **format_of(either)})
    assert door.play.submitted[-1].sampling.grammar == json_schema(either) != shut


async def test_the_openai_client_parses_into_types(door):
    class Thing(BaseModel):
        a: int

    door.play.answer = lambda prompt: '{"a": 3}'
    async with AsyncOpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0) as client:
        chat = await client.chat.completions.parse(
            model="tiny", messages=[{"role": "user", "content": "hi"}], response_format=Thing
        )
    assert chat.choices[0].message.parsed == Thing(a=3)
    assert '"json_schema"' in door.play.submitted[0].sampling.grammar


REFERS_TO_ITSELF = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
OF_SCHEMA = "response_format.json_schema.schema"
WRONG = [
    (format_of({"type": "text"}), OF_SCHEMA, "Invalid type"),
    (format_of(REFERS_TO_ITSELF), OF_SCHEMA, "endless"),
    (format_of({"enum": ["x" * 300_000]}), OF_SCHEMA, "too large"),
    (format_of(NOT), OF_SCHEMA, "`strict` false leaves out"),
    (format_of({"enum": []}), OF_SCHEMA, "Unsatisfiable"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        OF_SCHEMA,
        "required",
    ),
    (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "needs `json_schema`",
    ),
    (
        {"response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
        "response_format.json_schema",
        "has no `json_schema`",
    ),
    ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
    ({"structured_outputs": {}}, "structured_outputs", "needs one of"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "not a JSON schema"),
    ({"structured_outputs": {"regex": "[a"}}, "structured_outputs.regex", "unclosed"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "1 or more"),
    ({"structured_outputs": {"grammar": "root ::= a"}}, "structured_outputs.grammar", "GBNF"),
    (
        {"structured_outputs": {"json": {}, "regex": "a"}},
        "structured_outputs.regex",
        "follows one grammar",
    ),
    (
        {
            "structured_outputs": {
                "json": {},
                "whitespace_pattern": " ",
                "disable_any_whitespace": True,
            }
        },
        "structured_outputs.whitespace_pattern",
        "excludes",
    ),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "Lark"),
    ({"guided_regex": "(?=a)"}, "guided_regex", "look-ahead"),
    ({"guided_grammar": "start: b"}, "guided_grammar", "unknown name"),
    ({"guided_json": "[]"}, "guided_json", "not a JSON schema"),
    (
        {"guided_choice": ["a"], "response_format": {"type": "json_object"}},
        "guided_choice",
        "`response_format` and `guided_choice`",
    ),
]


@pytest.mark.parametrize(("fields", "field", "why"), WRONG)
async def test_a_wrong_grammar_is_refused_by_its_field(http, door, fields, field, why):
    answer = await http.post(CHAT, json={"messages": [HI]} | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, field), error
    assert why in error["message"]
    assert not door.play.submitted


async def test_a_slow_grammar_stops_no_other_stream(http, door, monkeypatch):
    held, compile_ = threading.Event(), Grammars._compile

    def slow(self, grammar):
        held.wait()
        return compile_(self, grammar)

    monkeypatch.setattr(Grammars, "_compile", slow)
    guided = [
        asyncio.create_task(http.post(COMPLETIONS, json={"prompt": "x", "guided_regex": text}))
        for text in ("a", "b", "c")
    ]
    try:
        for _ in range(3):
            free = await http.post(CHAT, json={"messages": [HI]})
            assert free.status_code == 200
        assert not any(each.done() for each in guided)
    finally:
        held.set()
    assert [(await each).status_code for each in guided] == [200] * 3
