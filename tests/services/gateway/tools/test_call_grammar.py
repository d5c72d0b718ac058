"""Grammars of calls: what they allow is what the family's parser reads, and nothing else."""

import pytest

from sps2.common.api import NamedTool, Tool
from sps2.common.api.tools import Function, FunctionReference
from sps2.common.errors import Internal, Invalid
from sps2.common.grammar import json_schema, regex
from sps2.services.gateway.tools.events import Arguments, Called, Text, Thought
from sps2.services.gateway.tools.families import FAMILIES

from .strict import CLOCK, OSLO, ROME, STRICT, WEATHER, WRITTEN, follows, read, reading


def test_there_is_one_for_each_family():
    assert set(WRITTEN) == set(FAMILIES)


@pytest.mark.parametrize("family", WRITTEN)
def test_required_calls_are_read(family, tokenizer):
    made = reading(family, tools=[WEATHER, CLOCK], tool_choice="required")
    grammar = made.grammar("", tokenizer)()
    text = WRITTEN[family].format(OSLO)
    assert follows(grammar, text, tokenizer)
    assert read(made, text) == [Called("weather"), Arguments(OSLO)]
    assert follows(grammar, WRITTEN[family].format("{}").replace("weather", "clock"), tokenizer)
    for wrong in (WRITTEN[family].format(ROME), text.replace("weather", "x"), "Hello", ""):
        assert not follows(grammar, wrong, tokenizer)


def test_several_calls_unless_there_must_be_one(tokenizer):
    text = WRITTEN["hermes"].format(OSLO)
    for several in (None, False):
        made = reading(tools=[WEATHER], tool_choice="required", parallel_tool_calls=several)
        grammar = made.grammar("", tokenizer)()
        assert follows(grammar, text, tokenizer)
        assert follows(grammar, f"{text}\n{text}", tokenizer) == (several is None)


def test_a_named_function_alone(tokenizer):
    choice = NamedTool(function=FunctionReference("clock"))
    grammar = reading(tools=[WEATHER, CLOCK], tool_choice=choice).grammar("", tokenizer)()
    assert not follows(grammar, WRITTEN["hermes"].format(OSLO), tokenizer)
    clock = WRITTEN["hermes"].format("{}").replace("weather", "clock")
    assert follows(grammar, clock, tokenizer)


def test_thoughts_come_before(tokenizer):
    call = WRITTEN["hermes"].format(OSLO)
    made = reading("hermes", "think", tools=[WEATHER], tool_choice="required")
    grammar = made.grammar("", tokenizer)()
    assert follows(grammar, call, tokenizer)
    assert follows(grammar, f"<think>\nHm.\n</think>\n\n{call}", tokenizer)
    assert not follows(grammar, f"Hm.</think>{call}", tokenizer)

    opened = made.opened_by(tokenizer.encode("assistant:<think>\n"), tokenizer)
    grammar = opened.grammar("", tokenizer)()
    text = f"Hm.\n</think>\n\n{call}"
    assert follows(grammar, text, tokenizer)
    assert not follows(grammar, f"Hm.\n</think>\n\n{WRITTEN['hermes'].format(ROME)}", tokenizer)
    assert read(opened, text) == [Thought("Hm."), Called("weather"), Arguments(OSLO)]


@pytest.mark.parametrize("answer", [json_schema({"type": "integer"}), regex("[0-9]+")])
def test_calls_or_an_answer_of_another_grammar(tokenizer, answer):
    made = reading(tools=[WEATHER])
    grammar = made.grammar(answer, tokenizer)()
    assert follows(grammar, WRITTEN["hermes"].format(OSLO), tokenizer)
    assert follows(grammar, "42", tokenizer)
    assert not follows(grammar, "Hello", tokenizer)
    alone = reading("hermes", "think").grammar(answer, tokenizer)()
    assert follows(alone, "<think>Hm.</think>42", tokenizer)
    assert not follows(alone, "<think>Hm.</think>x", tokenizer)
    assert reading().grammar(answer, tokenizer) is None


@pytest.mark.parametrize("family", ["hermes", "mistral"])
def test_strict_functions_are_called_right_or_not_at_all(tokenizer, family):
    made = reading(family, tools=[STRICT, CLOCK])
    grammar = made.grammar("", tokenizer)()
    text = WRITTEN[family].format(OSLO)
    for right in ("", "Hello <b> [x].", f"Hm.{text}", text):
        assert follows(grammar, right, tokenizer)
    assert not follows(grammar, f"Hm.{WRITTEN[family].format(ROME)}", tokenizer)
    thinking = reading(family, "think", tools=[STRICT, CLOCK]).grammar("", tokenizer)()
    thought = "<think>I may write <tool_call> or [TOOL_CALLS] here.</think>"
    for right in ("Hello", f"{thought}Hm.{text}", f"{thought}Yes.", text):
        assert follows(thinking, right, tokenizer)
    opened = reading(family, "think", tools=[STRICT]).opened_by(
        tokenizer.encode("<think>"), tokenizer
    )
    within = opened.grammar("", tokenizer)()
    assert follows(within, f"{thought.removeprefix('<think>')}Hm.{text}", tokenizer)
    assert not follows(within, f"Hm.</think>{WRITTEN[family].format(ROME)}", tokenizer)
    assert not follows(thinking, f"{thought}{WRITTEN[family].format(ROME)}", tokenizer)
    assert reading(family, tools=[WEATHER]).grammar("", tokenizer) is None


def test_special_tokens_are_tokens(special):
    made = reading("mistral", "mistral", tools=[STRICT, CLOCK], tool_choice="required")
    grammar = made.grammar("", special)()
    text = f"[TOOL_CALLS]weather[ARGS]{OSLO}"
    assert follows(grammar, text, special)
    assert follows(grammar, f"[THINK]Hm.[/THINK]{text}[TOOL_CALLS]clock[ARGS]{{}}", special)
    assert not follows(grammar, f"[TOOL_CALLS]weather[ARGS]{ROME}", special)
    literal = special.encode(text, False, parse_special_tokens=False)
    with pytest.raises(Internal):
        special.grammars.matcher(grammar, literal)
    free = reading("mistral", tools=[STRICT]).grammar("", special)()
    assert follows(free, f"Hm. {text}", special)
    assert not follows(free, f"Hm. [TOOL_CALLS]weather[ARGS]{ROME}", special)
    assert made.shown(special) == {258, 259, 260, 261}
    assert read(made, text) == [Called("weather"), Arguments(OSLO)]


def test_parameters_are_those_of_an_object(tokenizer):
    wrong = Tool(function=Function("f", parameters={"type": "array"}))
    make = reading(tools=[wrong], tool_choice="required").grammar("", tokenizer)
    with pytest.raises(Invalid, match="not those of an object"):
        make()


def test_text_is_read_as_it_is():
    assert reading().parser() is None
    assert read(reading(tools=[CLOCK]), "a<b") == [Text("a<b")]
