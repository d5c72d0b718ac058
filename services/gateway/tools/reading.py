"""How the answers to a request are read: the functions they may call, and the grammar of that."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from sps2.common.api import ChatRequest, Message, NamedTool, Tool
from sps2.common.errors import Invalid
from sps2.common.text.tokens import Tokenizer
from sps2.services.gateway.tools.bare_calls import BareCalls
from sps2.services.gateway.tools.call_grammar import CallGrammar
from sps2.services.gateway.tools.calls import Calls
from sps2.services.gateway.tools.events import Parser
from sps2.services.gateway.tools.families import FAMILIES, NAMED, THOUGHTS, marks
from sps2.services.gateway.tools.named_call import ARGS
from sps2.services.gateway.tools.thoughts import Plain, Thoughts

BAD = "invalid_value"
MOST_CHARS = 64 << 10
"""Of the JSON of one tool."""
LAST_TOKENS = 16
"""Tokens at the end of a prompt among which the tag that opens thoughts is looked for."""


class Reading(msgspec.Struct, frozen=True):
    """What the answers to a chat may contain besides text.

    Attributes:
        tools: those that the model is shown, and may call.
        family: the name of the form in which it calls them; see `FAMILIES`.
        thoughts: the name of the tags of its thoughts; see `THOUGHTS`.
        must_call: whether an answer has at least one call.
        several: whether it may have several.
        is_open: whether answers begin within thoughts.
    """

    tools: tuple[Tool, ...] = ()
    family: str = "hermes"
    thoughts: str = "none"
    must_call: bool = False
    several: bool = True
    is_open: bool = False

    def parser(self) -> Parser | None:
        """A parser of one answer; None if answers are text alone."""
        tags = THOUGHTS[self.thoughts]
        if tags is None and not self.tools:
            return None
        calls = Calls(FAMILIES[self.family].form, self._functions) if self.tools else Plain()
        return calls if tags is None else Thoughts(tags, calls, self.is_open)

    def shown(self, tokenizer: Tokenizer) -> frozenset[int]:
        """The special tokens whose text a parser needs."""
        family = FAMILIES[self.family] if self.tools else None
        texts = marks(family, THOUGHTS[self.thoughts])
        return frozenset(tokenizer.special[each] for each in texts if each in tokenizer.special)

    def opened_by(self, prompt: Sequence[int], tokenizer: Tokenizer) -> "Reading":
        """The same for answers to a prompt, which may end with the tag that opens thoughts."""
        tags = THOUGHTS[self.thoughts]
        if tags is None:
            return self
        end = tokenizer.decode(prompt[-LAST_TOKENS:], skip_special_tokens=False)
        return msgspec.structs.replace(self, is_open=end.rstrip().endswith(tags.opening))

    def grammar(self, answer: str, tokenizer: Tokenizer) -> Callable[[], str] | None:
        """Makes the grammar that answers with calls or thoughts must follow, if there is one.

        Args:
            answer: the grammar that the request sets for an answer itself; empty if none.
        """
        tags = THOUGHTS[self.thoughts]
        if tags is None and not self.tools:
            return None
        strict = {tool.function.name for tool in self.tools if tool.function.strict}
        family = FAMILIES[self.family]
        written = family.written
        if self.family == "mistral" and ARGS in tokenizer.special:
            written = NAMED
        rules = CallGrammar(written, self._functions, strict, tokenizer.special, self.several)
        if self.must_call:
            return lambda: rules.required(tags, self.is_open)
        if answer:
            return lambda: rules.with_answer(answer, tags, self.is_open)
        begins = (written.first + written.before).startswith
        opener = next(filter(begins, family.form.openers), None)
        if not strict:
            return None
        if opener is not None:
            return lambda: rules.strict_when_called(opener, tags, self.is_open)
        bare = BareCalls(family.form, self._functions, strict, tokenizer.special, self.several)
        return lambda: bare.grammar(tags, self.is_open)

    @property
    def _functions(self) -> Mapping[str, Mapping[str, Any]]:
        return {tool.function.name: tool.function.parameters or {} for tool in self.tools}


def reading_of(request: ChatRequest, family: str, thoughts: str) -> Reading:
    """How the answers to a request are read.

    Raises:
        Invalid: the tools, or the choice among them, are wrong; the field at fault is named.
    """
    tools = request.tools or []
    check_tools(tools)
    choice = request.tool_choice or "auto"
    must_call = choice == "required"
    if isinstance(choice, NamedTool):
        tools, must_call = _chosen(choice, tools)
    elif choice == "none":
        tools = []
    if must_call and not tools:
        raise Invalid(f"`tool_choice` {choice!r} needs `tools`", "tool_choice", BAD)
    named = isinstance(choice, NamedTool) and choice.type == "function"
    several = request.parallel_tool_calls is not False and not named  # OpenAI: a named one is once
    return Reading(tuple(tools), family, thoughts, must_call, several)


def described(tool: Tool) -> dict[str, Any]:
    """A tool as chat templates take it."""
    function = tool.function
    return {
        "type": "function",
        "function": {
            "name": function.name,
            "description": function.description or "",
            "parameters": function.parameters or {"type": "object", "properties": {}},
        },
    }


def check_tools(tools: Sequence[Tool]) -> None:
    """Raise Invalid if two tools have one name, or one is too large."""
    names: set[str] = set()
    for place, tool in enumerate(tools):
        name = tool.function.name
        if name in names:
            raise Invalid(
                f"`tools` has two functions `{name}`", f"tools[{place}].function.name", BAD
            )
        names.add(name)
        field = f"tools[{place}].function"
        try:
            size = len(json.dumps(described(tool)))
        except RecursionError:
            raise Invalid(f"`{field}.parameters` are nested too deeply", field, BAD) from None
        if size > MOST_CHARS:
            raise Invalid(
                f"`{field}` is too large: {size} characters; the most is {MOST_CHARS}", field, BAD
            )


def check_results(messages: Sequence[Message]) -> None:
    """Raise Invalid if a result belongs to no call of the assistant's turn before."""
    calls: set[str] = set()
    for place, message in enumerate(messages):
        if message.role == "assistant":
            calls = {call.id for call in message.tool_calls or ()}
        elif message.role == "tool" and message.tool_call_id not in calls:
            raise Invalid(
                f"`messages[{place}].tool_call_id` is of no call: a turn of role `tool` follows "
                "the assistant's turn whose `tool_calls` have its id",
                f"messages[{place}].tool_call_id",
                BAD,
            )


def _chosen(choice: NamedTool, tools: Sequence[Tool]) -> tuple[list[Tool], bool]:
    """The tools that may be called, and whether one must be."""
    known = {tool.function.name: tool for tool in tools}
    if choice.type == "function" and choice.function is not None:
        names, field, must_call = [choice.function.name], "tool_choice.function.name", True
    else:
        assert choice.allowed_tools is not None
        names = [each.function.name for each in choice.allowed_tools.tools]
        field, must_call = "tool_choice.allowed_tools", choice.allowed_tools.mode == "required"
    for name in names:
        if name not in known:
            raise Invalid(f"`{field}`: `tools` has no function `{name[:64]}`", field, BAD)
    return [known[name] for name in dict.fromkeys(names)], must_call
