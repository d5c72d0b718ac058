"""Turns requests of Ollama's API into chats and completions."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from sps2.common.api import ChatRequest, CompletionRequest, EmbeddingRequest, check
from sps2.common.api.requests import Prompt
from sps2.common.errors import Invalid
from sps2.services.gateway.protocols.ollama.open_calls import Call, OpenCalls
from sps2.services.gateway.protocols.ollama.requests import (
    ChatBody,
    EmbedBody,
    GenerateBody,
    Shared,
    Turn,
)
from sps2.services.gateway.served_model import Served

LATEST = ":latest"
SAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
)
"""Options that a chat has under the same name."""
BAD = "invalid_value"


def chat_of(body: ChatBody, served: Served) -> ChatRequest | None:
    """The chat that a body stands for; None if it has no messages, and so only loads the model.

    Raises:
        Invalid: a field is wrong or not supported.
    """
    fields = _shared(body, served)
    if not body.messages:
        return None
    if body.tools:
        fields["tools"] = msgspec.to_builtins(body.tools)
    return check(fields | _thinking(body) | {"messages": _messages(body.messages)}, ChatRequest)


def generation_of(body: GenerateBody, served: Served) -> ChatRequest | CompletionRequest | None:
    """The chat or, with `raw`, the completion that a body stands for; see `chat_of`."""
    fields = _shared(body, served)
    if not body.prompt:
        return None
    if body.raw:
        for name in ("system", "think"):
            if getattr(body, name):
                raise Invalid(f"`{name}` needs the model's template; `raw` has none", name, BAD)
        if fields.pop("logprobs", False):
            fields["logprobs"] = fields.pop("top_logprobs", None) or 0
        return check(fields | {"prompt": body.prompt}, CompletionRequest)
    turns = [{"role": "system", "content": body.system}] if body.system else []
    turns.append({"role": "user", "content": body.prompt})
    return check(fields | _thinking(body) | {"messages": turns}, ChatRequest)


def embedding_of(body: EmbedBody, served: Served) -> EmbeddingRequest:
    """The request for embeddings that a body stands for. Raises Invalid as `chat_of` does."""
    given: Prompt = body.input if isinstance(body.input, str) else [*body.input]
    return EmbeddingRequest(model=name_of_model(body.model, served), input=given)


def name_of_model(name: str, served: Served) -> str:
    """The served model's name that a client means: `NAME:latest` is `NAME` too.

    Raises:
        Invalid: another model is meant.
    """
    if name not in served.names:
        name = name.removesuffix(LATEST)
    served.check_model(name)
    return name


def _shared(body: Shared, served: Served) -> dict[str, Any]:
    """Fields of the request that chats and completions have in common."""
    fields: dict[str, Any] = {"model": name_of_model(body.model, served)}
    if (options := body.options) is not None:
        fields |= {name: getattr(options, name) for name in SAME}
        fields["repetition_penalty"] = options.repeat_penalty
        if options.num_predict is not None and options.num_predict > 0:
            fields["max_tokens"] = options.num_predict
    if body.format == "json":
        fields["response_format"] = {"type": "json_object"}
    elif body.format:
        # as in Ollama, keywords that cannot be followed are no reason to refuse the rest
        schema = {"name": "format", "schema": body.format, "strict": False}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    if body.top_logprobs and not body.logprobs:
        raise Invalid("`top_logprobs` needs `logprobs` to be true", "top_logprobs", BAD)
    fields |= {"logprobs": body.logprobs, "top_logprobs": body.top_logprobs}
    return {name: value for name, value in fields.items() if value is not None}


def _thinking(body: Shared) -> dict[str, Any]:
    if body.think is None:
        return {}
    variables: dict[str, Any] = {"enable_thinking": bool(body.think)}
    if isinstance(body.think, str):
        variables["reasoning_effort"] = body.think
    return {"chat_template_kwargs": variables}


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """The turns as messages of a chat.

    Calls without an id get one. A result without one is that of the first open call of its
    function, or of any function if it names none.
    """
    open_calls = OpenCalls()
    messages = []
    for place, turn in enumerate(turns):
        message: dict[str, Any] = {"role": turn.role, "content": turn.content or ""}
        if turn.thinking:
            message["reasoning_content"] = turn.thinking
        if turn.tool_calls:
            calls = [
                {
                    "id": call.id or f"call_{place}_{number}",
                    "function": {
                        "name": call.function.name,
                        "arguments": json.dumps(call.function.arguments, ensure_ascii=False),
                    },
                }
                for number, call in enumerate(turn.tool_calls)
            ]
            message["tool_calls"] = calls
            open_calls.add(Call(each["id"], each["function"]["name"]) for each in calls)  # type: ignore[arg-type,index]
        if turn.role == "tool":
            message |= _result_of(turn, place, open_calls)
        messages.append(message)
    return messages


def _result_of(turn: Turn, place: int, open_calls: OpenCalls) -> dict[str, str]:
    """Which call a turn of role `tool` answers; it is closed."""
    function = turn.tool_name or turn.name
    if (call := open_calls.close(turn.tool_call_id or "", function or "")) is not None:
        return {"tool_call_id": call.id, "name": call.name}
    if turn.tool_call_id:
        named = {"name": function} if function else {}
        return {"tool_call_id": turn.tool_call_id} | named
    what = f" of `{function}`" if function else ""
    raise Invalid(
        f"`messages[{place}]` is a result, but no call{what} before it is without one: send the "
        "assistant's turn with its `tool_calls` too",
        f"messages[{place}]",
        BAD,
    )
