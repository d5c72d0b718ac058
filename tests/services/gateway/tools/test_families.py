"""What models of each family write, cut at every place: always the same calls and texts."""

import ast
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sps2.services.gateway.tools import python_call
from sps2.services.gateway.tools.calls import Calls
from sps2.services.gateway.tools.events import Arguments, Called, Parser, Text, Thought, merged
from sps2.services.gateway.tools.families import FAMILIES, THOUGHTS
from sps2.services.gateway.tools.thoughts import Plain, Thoughts

FUNCTIONS = {
    "f": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}},
    "get-it": {},
}


def events(family, *parts, tags=None, is_open=False):
    parser: Parser = Calls(FAMILIES[family].form, FUNCTIONS)
    if tags:
        parser = Thoughts(THOUGHTS[tags], parser, is_open)
    found = []
    for part in parts:
        found += parser.add(part)
    return merged(found + parser.close())


def call(name, arguments):
    return [Called(name), Arguments(arguments)]


SAMPLES = {
    "text": ("hermes", "Hello <b>world</b>. ", [Text("Hello <b>world</b>. ")]),
    "space": ("hermes", " \n", [Text(" \n")]),
    "call": (
        "hermes",
        '<tool_call>\n{"name": "f", "arguments": {"a": 1, "b": "}\\"{"}}\n</tool_call>',
        call("f", '{"a": 1, "b": "}\\"{"}'),
    ),
    "text before and after": (
        "hermes",
        'I look.\n<tool_call>{"name":"f","arguments":{}}</tool_call>\nDone.',
        [Text("I look.\n"), *call("f", "{}"), Text("\nDone.")],
    ),
    "two": (
        "hermes",
        '\n\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get-it", "arguments": {"x": [1, {"y": null}]}}\n</tool_call>\n',
        [*call("f", '{"a": 1}'), *call("get-it", '{"x": [1, {"y": null}]}')],
    ),
    "arguments first": (
        "hermes",
        '<tool_call>{"arguments": {"a": 1}, "id": "7", "name": "f"}</tool_call>',
        call("f", '{"a": 1}'),
    ),
    "quoted arguments": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
        call("f", '{"a": 1}'),
    ),
    "no arguments": ("hermes", '<tool_call>{"name": "f"}</tool_call>', call("f", "{}")),
    "null": ("hermes", '<tool_call>{"name": "f", "arguments": null}', call("f", "{}")),
    "no closer": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": 2}}',
        call("f", '{"a": 2}'),
    ),
    "cut": ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "x', call("f", '{"a": "x')),
    "cut early": ("hermes", '<tool_call>{"name": "f', [Text('<tool_call>{"name": "f')]),
    "unknown name": (
        "hermes",
        'x<tool_call>{"name": "g", "arguments": {}}</tool_call>',
        [Text('x<tool_call>{"name": "g", "arguments": {}}</tool_call>')],
    ),
    "broken, then whole": (
        "hermes",
        '<tool_call>{"na\n<tool_call>{"name": "f", "arguments": {}}</tool_call>',
        [Text('<tool_call>{"na\n'), *call("f", "{}")],
    ),
    "nested opener": (
        "hermes",
        '<tool_call><tool_call>{"name": "f", "arguments": {}}</tool_call>',
        [Text("<tool_call>"), *call("f", "{}")],
    ),
    "arguments of another kind": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        [Text('<tool_call>{"name": "f", "arguments": [1]}</tool_call>')],
    ),
    "rubbish behind": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {}} or so}</tool_call>',
        [*call("f", "{}"), Text(" or so}</tool_call>")],
    ),
    "bare": (
        "llama3",
        '{"name": "f", "parameters": {"a": 1}}',
        call("f", '{"a": 1}'),
    ),
    "bare, with a type": (
        "llama3",
        ' {"type": "function", "name": "f", "parameters": {}}',
        call("f", "{}"),
    ),
    "bare, two": (
        "llama3",
        '{"name": "f", "parameters": {}}; {"name": "get-it", "parameters": {"b": "c"}}',
        [*call("f", "{}"), *call("get-it", '{"b": "c"}')],
    ),
    "python tag": (
        "llama3",
        '<|python_tag|>{"name": "f", "parameters": {}}',
        call("f", "{}"),
    ),
    "python": (
        "llama3",
        '<|python_tag|>search.call(query="x")',
        [Text('<|python_tag|>search.call(query="x")')],
    ),
    "data": (
        "llama3",
        '{"name": "f", "age": 3}',
        [Text('{"name": "f", "age": 3}')],
    ),
    "data later": (
        "llama3",
        'It is {"name": "f", "parameters": {}}',
        [Text('It is {"name": "f", "parameters": {}}')],
    ),
    "list": (
        "mistral",
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "123456789"}, '
        '{"name": "get-it", "arguments": {}}]',
        [*call("f", '{"a": 1}'), *call("get-it", "{}")],
    ),
    "named": (
        "mistral",
        'Well.[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]get-it[CALL_ID]abc123def[ARGS]{}',
        [Text("Well."), *call("f", '{"a": 1}'), *call("get-it", "{}")],
    ),
    "named, no tag": ("mistral", '[TOOL_CALLS]f{"a": 1}', call("f", '{"a": 1}')),
    "named, unknown": ("mistral", "[TOOL_CALLS]g[ARGS]{}", [Text("[TOOL_CALLS]g[ARGS]{}")]),
    "named, longer": ("mistral", "[TOOL_CALLS]ff[ARGS]{}", [Text("[TOOL_CALLS]ff[ARGS]{}")]),
    "list of numbers": ("mistral", "[TOOL_CALLS][1, 2]", [Text("[TOOL_CALLS][1, 2]")]),
    "json list": (
        "json",
        '[{"name": "f", "arguments": {"a": 1}}, {"name": "f", "parameters": {}}]',
        [*call("f", '{"a": 1}'), *call("f", "{}")],
    ),
    "json, data": ("json", "[1, 2]", [Text("[1, 2]")]),
    "python calls": (
        "pythonic",
        "[f(a=1, b='it\\'s )'), f(b=\"é\", a=None)]",
        [*call("f", '{"a": 1, "b": "it\'s )"}'), *call("f", '{"b": "é", "a": null}')],
    ),
    "python, no literal": ("pythonic", "[f(a=g())]", [Text("[f(a=g())]")]),
    "python, object": ("pythonic", '{"name": "f", "parameters": {}}', call("f", "{}")),
    "tags": (
        "qwen3_coder",
        "<tool_call>\n<function=f>\n<parameter=a>\n3\n</parameter>\n<parameter=b>\n3\nx < y\n"
        "</parameter>\n</function>\n</tool_call>",
        call("f", '{"a": 3, "b": "3\\nx < y"}'),
    ),
    "tags, none": (
        "qwen3_coder",
        "<tool_call><function=get-it></function></tool_call>!",
        [*call("get-it", "{}"), Text("!")],
    ),
    "tags, unknown": (
        "qwen3_coder",
        "<tool_call><function=g></function></tool_call>",
        [Text("<tool_call><function=g></function></tool_call>")],
    ),
    "tags or an object": (
        "qwen3_coder",
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
        call("f", "{}"),
    ),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_cuts_make_no_difference(name):
    family, text, expected = SAMPLES[name]
    assert events(family, text) == expected
    assert events(family, *text) == expected
    for place in range(len(text)):
        assert events(family, text[:place], text[place:]) == expected


THINKING = {
    "<think>\nHm.\n\nSo.\n</think>\n\nYes.": [Thought("Hm.\n\nSo."), Text("Yes.")],
    "\n<think></think>Yes.": [Text("Yes.")],
    "<thin": [Text("<thin")],
    " \n Yes. ": [Text(" \n Yes. ")],
    "Yes <think>no</think>": [Text("Yes <think>no</think>")],
    "<think>a </thin k> b": [Thought("a </thin k> b")],
    "<think>so </thi": [Thought("so </thi")],
    '<think>x</think><tool_call>{"name": "f", "arguments": {}}</tool_call>': [
        Thought("x"),
        *call("f", "{}"),
    ],
}


@pytest.mark.parametrize("text", THINKING)
def test_thoughts(text):
    for place in range(len(text)):
        parts = (text[:place], text[place:])
        assert events("hermes", *parts, tags="think") == THINKING[text]
    assert events("hermes", *text, tags="think") == THINKING[text]


def test_the_prompt_may_open_thoughts():
    for text in ("So.\n</think>\nYes.", "\n<think>So.</think>"):
        found = events("hermes", *text, tags="think", is_open=True)
        assert isinstance(found[0], Thought)
    assert events("hermes", "So.</think>Yes.", tags="think", is_open=True) == [
        Thought("So."),
        Text("Yes."),
    ]


def test_arguments_come_as_they_are_written():
    parser = Calls(FAMILIES["hermes"].form, FUNCTIONS)
    assert parser.add('<tool_call>{"name": "f", "arguments": ') == []
    assert parser.add("{") == [Called("f"), Arguments("{")]
    assert parser.add('"b": "lo') == [Arguments('"b": "lo')]
    assert parser.add('ng"}') == [Arguments('ng"}')]


def test_text_is_held_back_only_while_it_may_be_a_call():
    parser = Calls(FAMILIES["hermes"].form, FUNCTIONS)
    assert parser.add("a <") == [Text("a ")]
    assert parser.add("b") == [Text("<b")]
    assert parser.add("<tool_call>{") == []
    assert parser.add("x") == [Text("<tool_call>{x")]


PARTS = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "[ARGS]", "[CALL_ID]",
        '{"name": "f", "arguments": {"a": 1}}', '{"name": "', 'f"', ", ", '"arguments": ', "{", "}",
        "[", "]", "(", ")", "f(a=", "f", "get-it", "'", '"', "\\", "<function=f>", "</function>",
        "<parameter=a>", "</parameter>", "<think>", "</think>", " ", "\n", ";", "x", "é", "null",
    ]
)  # fmt: skip


@given(
    parts=st.lists(PARTS, max_size=30),
    family=st.sampled_from([*FAMILIES]),
    tags=st.sampled_from([None, "think"]),
    is_open=st.booleans(),
)
def test_any_text_is_read_alike_however_it_is_cut(parts, family, tags, is_open):
    text = "".join(parts)
    whole = events(family, text, tags=tags, is_open=is_open)
    assert events(family, *parts, tags=tags, is_open=is_open) == whole
    assert events(family, *text, tags=tags, is_open=is_open) == whole
    if all(isinstance(event, Text) for event in whole) and not (
        tags and (is_open or "think>" in text)
    ):
        assert "".join(event.text for event in whole) == text  # nothing is lost
    assert whole == merged(whole)


@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text(), max_size=4))
def test_any_arguments_arrive_whole(arguments):
    text = json.dumps({"name": "f", "arguments": arguments}, ensure_ascii=False)
    found = events("hermes", *f"<tool_call>\n{text}\n</tool_call>")
    assert found[0] == Called("f")
    assert json.loads(found[1].text) == arguments
    assert len(found) == 2


def test_plain_text_passes():
    assert Plain().add("x") == [Text("x")]
    assert Plain().add("") == Plain().close() == []


def test_a_fault_of_the_interpreter_costs_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    parse, faults = ast.parse, [SystemError("AST constructor recursion depth mismatch")]

    def parsing(*given: Any, **more: Any) -> Any:
        if faults:
            raise faults.pop()
        return parse(*given, **more)

    monkeypatch.setattr(ast, "parse", parsing)
    assert python_call._arguments("a=1)") == '{"a": 1}'
