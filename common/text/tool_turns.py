"""Turns about tools, in the form that a model's chat template takes.

A template that does not use tools gets them as text: a system turn describes the functions and how
to call them, calls are JSON objects in `<tool_call>` tags, and results are turns of the user in
`<tool_response>` tags.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Turn = Mapping[str, Any]

SHORT_ID = re.compile("[a-zA-Z0-9]{9}")
_INTRODUCTION = """\
# Tools

You may call functions to answer the user. These are the functions, as JSON in <tools> tags:
<tools>
{tools}
</tools>

To call a function, write a JSON object with its name and arguments in <tool_call> tags:
<tool_call>
{{"name": "the function's name", "arguments": {{"an argument": "its value"}}}}
</tool_call>

The result of each call comes in <tool_response> tags."""


def described(turns: Sequence[Turn], tools: Sequence[Turn]) -> list[Turn]:
    """The same conversation as text alone, for a template that does not use tools."""
    told: list[Turn] = []
    for turn in turns:
        if turn["role"] == "tool":
            content = f"<tool_response>\n{turn['content']}\n</tool_response>"
            if told and told[-1].get("results"):
                content = f"{told.pop()['content']}\n{content}"
            told.append({"role": "user", "content": content, "results": True})
        elif calls := turn.get("tool_calls"):
            parts = [turn["content"], *(_call(call["function"]) for call in calls)]
            kept = {name: value for name, value in turn.items() if name != "tool_calls"}
            told.append({**kept, "content": "\n".join(filter(None, parts))})
        else:
            told.append(turn)
    told = [{name: turn[name] for name in turn if name != "results"} for turn in told]
    if not tools:
        return told
    introduction = _INTRODUCTION.format(tools="\n".join(map(_json, tools)))
    if told and told[0]["role"] == "system":
        first = {**told[0], "content": f"{told[0]['content']}\n\n{introduction}"}
        return [first, *told[1:]]
    return [{"role": "system", "content": introduction}, *told]


def with_short_ids(turns: Sequence[Turn]) -> list[Turn]:
    """The turns with ids of calls as Mistral's templates want them: nine letters and digits."""
    return [
        {
            **turn,
            **({"tool_call_id": _short(turn["tool_call_id"])} if "tool_call_id" in turn else {}),
            **(
                {"tool_calls": [{**call, "id": _short(call["id"])} for call in turn["tool_calls"]]}
                if "tool_calls" in turn
                else {}
            ),
        }
        for turn in turns
    ]


def _call(function: Turn) -> str:
    call = {"name": function["name"], "arguments": function["arguments"]}
    return f"<tool_call>\n{_json(call)}\n</tool_call>"


def _short(given: str) -> str:
    if SHORT_ID.fullmatch(given):
        return given
    return hashlib.sha256(given.encode(errors="replace")).hexdigest()[:9]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
