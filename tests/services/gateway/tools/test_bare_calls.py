"""Where nothing marks calls, text goes free until it is a call of one of the functions."""

import random

import jsonschema
import numpy as np
import pytest

from sps2.common.api import Tool
from sps2.common.api.tools import Function
from sps2.services.gateway.tools.call_object import loaded
from sps2.services.gateway.tools.events import Arguments, Called, Text, Thought

from .strict import CLOCK, OSLO, ROME, STRICT, WRITTEN, follows, read, reading

BARE = ("llama3", "pythonic", "json")
TAG = "<|python_tag|>"
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["C", "F"]},
        "near": {"type": "array", "items": {"$ref": "#/$defs/place"}},
        "rain": {"type": "boolean"},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
    "$defs": {"place": {"type": "object", "properties": {"a": {"type": "boolean"}}}},
}
FORECAST = Tool(function=Function("weather_of", parameters=SCHEMA, strict=True))
TOOLS = (STRICT, CLOCK, FORECAST)


def strict(family, tokenizer, thoughts="none", tools=TOOLS, **more):
    """How answers are read, and their grammar."""
    made = reading(family, thoughts, tools=[*tools], **more)
    return made, made.grammar("", tokenizer)()


@pytest.mark.parametrize("family", BARE)
def test_calls_are_right_or_not_at_all(tokenizer, family):
    made, grammar = strict(family, tokenizer)
    text = WRITTEN[family].format(OSLO)
    typed = text.replace("{", '{"type": "function", ', 1)
    for right in (text, f"\n {text}", text.replace('", "', '",\n  "').replace("{", "{ ", 1), typed):
        assert follows(grammar, right, tokenizer), right
        assert read(made, right) == [Called("weather"), Arguments(OSLO)]
    wrong = [WRITTEN[family].format(each) for each in (ROME, "null", '"{}"')]
    wrong += [f"{text} Hm.", text.replace("{", '{"parameters": {}, ', 1)]
    wrong.append(wrong[0].replace("{", '{"a": [], ', 1))
    for each in wrong:
        assert not follows(grammar, each, tokenizer), each
    assert follows(grammar, WRITTEN[family].format(ROME).replace("weather", "clock"), tokenizer)


@pytest.mark.parametrize("family", BARE)
def test_text_goes_free(tokenizer, family):
    made, grammar = strict(family, tokenizer)
    texts = ["", "Hello\n[x] {y}", '{"name": "Oslo", "weather": 1}', '{"weather": {}}', "{", "[1]"]
    texts += ["[weather, clock]", "I call weather(city=1).", '{"name": "weather_"', "weather()"]
    texts += [WRITTEN[family].format(ROME).replace("w", "\\u0077", 1)]
    for text in texts:
        assert follows(grammar, text, tokenizer), text
        assert read(made, text) in ([], [Text(text)])


@pytest.mark.parametrize("family", ["json", "pythonic"])
def test_lists_of_calls(tokenizer, family):
    made, grammar = strict(family, tokenizer)
    call, wrong = (WRITTEN[family].format(each) for each in (OSLO, ROME))
    text = f"[{call}, {call}]"
    assert follows(grammar, text, tokenizer)
    assert read(made, text) == [Called("weather"), Arguments(OSLO)] * 2
    for each in (f"[{call}, {wrong}]", f"[{wrong}]", f"[{call}, 1]", f"[{call}] {wrong}"):
        assert not follows(grammar, each, tokenizer), each
    _, single = strict(family, tokenizer, parallel_tool_calls=False)
    assert follows(single, f"[{call}]", tokenizer)
    assert not follows(single, text, tokenizer)


def test_separated_calls_of_llama(tokenizer):
    made, grammar = strict("llama3", tokenizer)
    call, wrong = (WRITTEN["llama3"].format(each) for each in (OSLO, ROME))
    assert follows(grammar, f"{call}; {call}", tokenizer)
    assert read(made, f"{call}; {call}") == [Called("weather"), Arguments(OSLO)] * 2
    assert not follows(grammar, f"{call}; {wrong}", tokenizer)
    assert not follows(grammar, f"{call} {wrong}", tokenizer)


@pytest.mark.parametrize("family", ["llama3", "pythonic"])
def test_behind_a_mark_there_is_a_call(special, tokenizer, family):
    made, grammar = strict(family, special)
    call, wrong = (f"{TAG}{WRITTEN[family].format(each)}" for each in (OSLO, ROME))
    for right in (call, f"Hm. {call}", f"Hm. {call} And {call}!"):
        assert follows(grammar, right, special), right
        assert Called("weather") in read(made, right)
    for each in (wrong, f"Hm. {wrong}", f"{TAG}print(1)", f"{call} And {wrong}"):
        assert not follows(grammar, each, special), each
    more = f"{call};{WRITTEN[family].format(ROME)}"
    assert follows(grammar, more, special) == (len(called(made, more)) == 1)
    _, without = strict(family, tokenizer)
    assert not follows(without, call, tokenizer)  # no token of this model


def test_calls_as_python_writes_them_behind_a_mark(special):
    made, grammar = strict("pythonic", special)
    text = f'Hm. {TAG}weather(city="Oslo")'
    assert follows(grammar, text, special)
    assert called(made, text) == [("weather", {"city": "Oslo"})]
    assert not follows(grammar, f"Hm. {TAG}weather(city=1)", special)


def test_calls_as_python_writes_them(tokenizer):
    made, grammar = strict("pythonic", tokenizer)
    right = {
        '[weather(city="Oslo")]': [("weather", {"city": "Oslo"})],
        "[weather(city='a\"b')]": [("weather", {"city": 'a"b'})],
        '[clock(any=[1, {"a": None}], b=true)]': [("clock", {"any": [1, {"a": None}], "b": True})],
        '[clock(), weather(city="\\u00e9\\n")]': [("clock", {}), ("weather", {"city": "é\n"})],
        '[weather_of(city="a", days=3, unit="C", rain=True)]': [
            ("weather_of", {"city": "a", "days": 3, "unit": "C", "rain": True})
        ],
        '[weather_of(city="a", unit="F", near=[{"a": true}, {}])]': [
            ("weather_of", {"city": "a", "unit": "F", "near": [{"a": True}, {}]})
        ],
    }
    for text, calls in right.items():
        assert follows(grammar, text, tokenizer), text
        assert called(made, text) == calls
    surrogate = read(made, '[clock(a="\\ud800")]')
    assert surrogate == [Called("clock"), Arguments('{"a": "\\ud800"}')]  # this can be sent
    for wrong in (
        "[weather(city=1)]",
        "[weather()]",
        '[weather(city="a", b=1)]',
        '[weather_of(city="a")]',
        '[weather_of(city="a", unit="K")]',
        '[weather_of(city="a", unit="C", near=[{"a": 1}])]',
        '[weather(city="a")] Hm.',
    ):
        assert not follows(grammar, wrong, tokenizer), wrong


def test_schemas_that_python_arguments_do_not_suit_are_written_as_objects(tokenizer):
    schema = {"type": "object", "properties": {"a-b": {"type": "integer"}}}
    tool = Tool(function=Function("f", parameters=schema, strict=True))
    made, grammar = strict("pythonic", tokenizer, tools=(tool,))
    text = '[{"name": "f", "parameters": {"a-b": 1}}]'
    assert follows(grammar, text, tokenizer)
    assert called(made, text) == [("f", {"a-b": 1})]
    assert not follows(grammar, "[f()]", tokenizer)


@pytest.mark.parametrize("family", BARE)
def test_thoughts_come_before_calls(tokenizer, family):
    made, grammar = strict(family, tokenizer, "think")
    call, wrong = (WRITTEN[family].format(each) for each in (OSLO, ROME))
    thought = f"<think>Perhaps {wrong}.</think>\n"
    assert follows(grammar, f"{thought}{call}", tokenizer)
    assert read(made, f"{thought}{call}") == [
        Thought(f"Perhaps {wrong}."),
        Called("weather"),
        Arguments(OSLO),
    ]
    assert follows(grammar, f"{thought}Hello", tokenizer)
    assert not follows(grammar, f"{thought}{wrong}", tokenizer)
    assert not follows(grammar, wrong, tokenizer)


COMMON = b"{}[]():;,\"' =namewtrclockfityprsuTFxd01_"


@pytest.mark.parametrize("family", BARE)
def test_whatever_is_read_as_a_strict_call_follows_its_schema(special, family):
    """Random answers: what follows their beginnings is drawn from what the grammar allows."""
    made, grammar = strict(family, special)
    head = WRITTEN[family].format("").removesuffix("}")
    beginnings = ["", "{", '{"name": "weather', '{"a": 1, "n', head, f" {head}{{", "Hm. {"]
    beginnings += [head.replace("weather", "weather_of")] * 4
    beginnings += {"llama3": [f"a{TAG}", f"{TAG}{head}"], "json": ["[", f"[{head}"]}.get(
        family, ["[weather", "[weather_of(", "[weather(", f"a{TAG}weather("]
    )
    draw, calls = random.Random(family), 0
    for number in range(80):
        ids = special.encode(beginnings[number % len(beginnings)], False)
        matcher = special.grammars.matcher(grammar, ids)
        while not matcher.ended and len(ids) < 160:
            scores = np.zeros(special.vocab_size, np.float32)
            matcher.ban(scores)
            allowed = [*np.flatnonzero(scores == 0)]
            ids.append(int(draw.choice([each for each in COMMON if each in allowed] or allowed)))
            if ids[-1] in special.eos_ids:
                break
            matcher.advance(ids[-1])
        for name, arguments in called(made, special.decode(ids, skip_special_tokens=False)):
            if arguments is not None and name != "clock":
                jsonschema.validate(arguments, made._functions[name])
                calls += 1
    assert calls


def called(made, text):
    """The calls that are read from an answer: names and arguments, None where they are cut."""
    calls = []
    for event in read(made, text):
        if isinstance(event, Called):
            calls.append((event.name, ""))
        elif isinstance(event, Arguments):
            calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
    return [(name, loaded(arguments)) for name, arguments in calls]
