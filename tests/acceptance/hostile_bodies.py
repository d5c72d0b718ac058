"""Makes hostile request bodies from a seed: tools, turns and grammars that nobody means."""

import json
import random
import string
from copy import deepcopy
from typing import Any, NamedTuple

from hostile_schemas import JUNK, PATTERNS, STRANGE, Schemas, deepened

CHAT, MESSAGES, RESPONSES, OLLAMA = (
    "/v1/chat/completions",
    "/v1/messages",
    "/v1/responses",
    "/api/chat",
)
MODEL = "smollm2-135m"
GRAMMARS = (
    *(
        "",
        "start:",
        "start: start",
        "start: start start",
        'start: "a"*',
        "start: (a)",
        "start: /(/",
    ),
    *("root ::= x", "%import common.WORD", "%ignore /.*/", 'start: ""', 'start: a\na: b\nb: a "x"'),
    *('start: "a"{100000}', 'start: (("a"?)*)*', "start: " + "(" * 4000 + '"a"' + ")" * 4000),
    *(
        'start: a*\na: "x" | a a | ""',
        "start: <[49151]>",
        "start: <[9999999]>",
        "start: <|im_end|>",
    ),
    *("start: %json {", 'start: %json {"type": "never"}', "start: @other", "start[lazy]: /.*/"),
    *(
        "start: /.*/ & ~/.*/",
        "start: A\nA: /a/ & /b/",
        "start: /(.{1,3000}b){20}/",
        "\x00",
        "start: A\nA: A",
    ),
    *("start: " + " ".join(f"r{i}" for i in range(3000)), 'start[max_tokens=0]: "a"'),
    "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(40)) + '\nr40: "a"',
)


class Case(NamedTuple):
    """A request: what it attacks, in words, its path and its body."""

    what: str
    path: str
    body: bytes


def case(seed: int) -> Case:
    """The hostile request of a seed, always the same."""
    return _Maker(seed).case()


class _Maker:
    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._what: list[str] = []
        self._schemas = Schemas(self._dice, self._what)

    def case(self) -> Case:
        path = self._dice.choice((CHAT, CHAT, CHAT, MESSAGES, RESPONSES, OLLAMA))
        body = {
            CHAT: self._chat,
            MESSAGES: self._messages,
            RESPONSES: self._responses,
            OLLAMA: self._ollama,
        }[path]()
        if self._dice.random() < 0.3:
            for _ in range(self._dice.randint(1, 3)):
                self._spoil(body)
        text = deepened(json.dumps(body))
        if self._dice.random() < 0.03:
            self._what.append("duplicate keys")
            text = text.replace("{", '{"model": "no", "messages": 1, "type": [], ', 1)
            text = text.removesuffix("}") + f', "model": "{MODEL}"}}'
        raw = text.encode()
        if self._dice.random() < 0.02:
            self._what.append("cut or damaged")
            place = self._dice.randrange(len(raw))
            raw = raw[:place] + self._dice.choice(
                (b"", b"\xff" + raw[place:], b"\x00" + raw[place:])
            )
        return Case(", ".join(self._what), path, raw)

    def _chat(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": MODEL,
            "messages": self._turns(),
            **self._common("max_tokens", usage=True),
        }
        kind = self._dice.random()
        if kind < 0.55:
            body["tools"] = [self._tool(each) for each in self._functions()]
            body["tool_choice"] = self._tool_choice(body["tools"])
            body["parallel_tool_calls"] = self._dice.choice((True, False, None))
        if kind > 0.5:
            self._constrain(body)
        return body

    def _messages(self) -> dict[str, Any]:
        turns = [{"role": turn["role"], "content": self._blocks(turn)} for turn in self._turns()]
        body: dict[str, Any] = {"model": MODEL, "messages": turns, **self._common("max_tokens")}
        body["system"] = self._dice.choice((None, "Be kind.", self._schemas.strange()))
        if self._dice.random() < 0.7:
            body["tools"] = [
                {"name": name, "description": self._words(), "input_schema": schema}
                for name, schema in self._functions()
            ]
            name = body["tools"][-1]["name"] if body["tools"] else "x"
            kind = self._dice.choice(("auto", "any", "any", "tool", "none"))
            body["tool_choice"] = {"type": kind} | ({"name": name} if kind == "tool" else {})
        else:
            body["output_config"] = {
                "format": {"type": "json_schema", "schema": self._schemas.schema()}
            }
        return body

    def _responses(self) -> dict[str, Any]:
        items: list[Any] = []
        for turn in self._turns():
            if turn["role"] == "tool":
                items.append(
                    {"type": "function_call_output", "call_id": turn["tool_call_id"], "output": "x"}
                )
            else:
                items.append({"role": turn["role"], "content": turn["content"] or ""})
            for call in turn.get("tool_calls", ()):
                items.append({"type": "function_call", "call_id": call["id"], **call["function"]})
        body: dict[str, Any] = {"model": MODEL, "input": items, **self._common("max_output_tokens")}
        if self._dice.random() < 0.1:
            body["previous_response_id"] = self._schemas.strange()
        if self._dice.random() < 0.6:
            body["tools"] = [
                {"type": "function", "name": name, "parameters": schema, "strict": self._flag()}
                for name, schema in self._functions()
            ]
            body["tool_choice"] = self._dice.choice(("auto", "required", "none"))
        else:
            form = {"type": "json_schema", "name": self._name(), "schema": self._schemas.schema()}
            body["text"] = {"format": form | {"strict": self._flag()}}
        return body

    def _ollama(self) -> dict[str, Any]:
        turns = [{"role": turn["role"], "content": turn["content"] or ""} for turn in self._turns()]
        body: dict[str, Any] = {"model": MODEL, "messages": turns, "stream": self._flag()}
        body["options"] = {"num_predict": self._dice.randint(1, 24)}
        if self._dice.random() < 0.5:
            body["tools"] = [self._tool(each) for each in self._functions()]
        else:
            body["format"] = self._schemas.schema()
        return body

    def _common(self, limit: str, usage: bool = False) -> dict[str, Any]:
        body: dict[str, Any] = {limit: self._dice.randint(1, 24), "stream": self._flag()}
        if body["stream"] and limit == "max_tokens" and usage:
            body["stream_options"] = {"include_usage": True}
        return body

    def _constrain(self, body: dict[str, Any]) -> None:
        kind = self._dice.choice(("format", "json", "regex", "grammar", "choice", "older"))
        match kind:
            case "format":
                schema = {
                    "name": self._name(),
                    "schema": self._schemas.schema(),
                    "strict": self._flag(),
                }
                body["response_format"] = {"type": "json_schema", "json_schema": schema}
            case "json":
                body["structured_outputs"] = {"json": self._schemas.schema()}
            case "regex":
                body["structured_outputs"] = {"regex": self._schemas.pick("pattern", PATTERNS)}
            case "grammar":
                body["structured_outputs"] = {"grammar": self._schemas.pick("grammar", GRAMMARS)}
            case "choice":
                options = self._dice.choice(
                    ([], ["", ""], ["a"] * 9000, [*STRANGE], ["x" * 60_000])
                )
                self._what.append(f"{len(options)} choices")
                body["structured_outputs"] = {"choice": options}
            case _:
                body["guided_json"] = json.dumps(self._schemas.schema())
                body["guided_whitespace_pattern"] = self._schemas.pick("space", PATTERNS)

    def _functions(self) -> list[tuple[str, Any]]:
        count = self._dice.choice((1, 1, 1, 2, 3, 20, 128, 129, 3000))
        if count > 3:
            self._what.append(f"{count} tools")
            same = self._schemas.schema() if count < 30 else {"type": "object"}
            return [(f"tool_{number}", same) for number in range(count)]
        return [(self._name(), self._schemas.schema()) for _ in range(count)]

    def _tool(self, function: tuple[str, Any]) -> dict[str, Any]:
        name, schema = function
        about = {"name": name, "description": self._words(), "parameters": schema}
        return {"type": "function", "function": about | {"strict": self._flag()}}

    def _tool_choice(self, tools: list[Any]) -> Any:
        name = tools[-1]["function"]["name"] if tools else "x"
        named = {"type": "function", "function": {"name": name}}
        some = {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [named] * 99},
        }
        return self._dice.choice(("auto", "required", "required", "none", named, some))

    def _turns(self) -> list[dict[str, Any]]:
        hello = {"role": "user", "content": "What is the weather in Oslo?"}
        call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        calls = {"role": "assistant", "content": None, "tool_calls": [call]}
        result = {"role": "tool", "content": "rain", "tool_call_id": "c1"}
        if self._dice.random() < 0.5:
            return [hello]
        kind = self._dice.randrange(10)
        self._what.append(f"turns {kind}")
        match kind:
            case 0:
                return [hello, result]
            case 1:
                return [hello, calls, result, result, calls, hello, result]
            case 2:
                call["function"] = {"name": self._name(), "arguments": self._schemas.strange()}
                return [hello, calls, result]
            case 3:
                call["function"] = {"name": "f", "arguments": '{"a":' * 3000 + "1" + "}" * 3000}
                return [hello, calls, result, hello]
            case 4:
                return [{**hello, "content": self._schemas.strange()} for _ in range(3)]
            case 5:
                return [hello, {**calls, "tool_calls": [call] * 2000}, result]
            case 6:
                return [
                    {**hello, "role": role} for role in ("assistant", "system", "user", "system")
                ]
            case 7:
                return [{**hello, "content": "a"}] * 1500
            case 8:
                return [
                    hello,
                    {**calls, "tool_calls": [call, call]},
                    result,
                    {**calls, "content": "<tool_call>"},
                ]
        return [hello, calls]

    def _blocks(self, turn: dict[str, Any]) -> Any:
        if turn["role"] == "tool":
            turn["role"] = "user"
            return [{"type": "tool_result", "tool_use_id": turn["tool_call_id"], "content": "rain"}]
        if "tool_calls" in turn:
            return [
                {
                    "type": "tool_use",
                    "id": each["id"],
                    "name": each["function"]["name"],
                    "input": {},
                }
                for each in turn["tool_calls"]
            ]
        return turn["content"]

    def _spoil(self, body: Any) -> None:
        """Put a wrong value anywhere in a body."""
        self._what.append("spoilt")
        place: Any = body
        while True:
            keys = [*place] if isinstance(place, dict) else [*range(len(place))]
            key = self._dice.choice(keys[:200])
            if (
                not isinstance(place[key], dict | list)
                or not place[key]
                or self._dice.random() < 0.3
            ):
                break
            place = place[key]
        place[key] = deepcopy(self._dice.choice((*JUNK, self._schemas.strange())))

    def _name(self) -> str:
        if self._dice.random() < 0.6:
            return "f" + "".join(self._dice.choices(string.ascii_lowercase, k=6))
        return self._schemas.strange()

    def _words(self) -> str:
        return "The weather." if self._dice.random() < 0.7 else self._schemas.strange()

    def _flag(self) -> bool:
        return self._dice.random() < 0.5
