"""The prompt of a chat: its messages, and what else the model's chat template is given."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from sps2.common.api import ChatRequest, Message, Tokenize, Tool, ToolCall
from sps2.common.errors import Invalid
from sps2.common.text.chat_prompt import SAMPLED
from sps2.common.text.sampled_turns import Sampled
from sps2.common.text.tokens import Tokenizer
from sps2.services.gateway.limits import BAD
from sps2.services.gateway.threads import HUGE_TEXT, threaded
from sps2.services.gateway.tools.reading import check_results, described

TURN_CHARS = 32
"""Estimated size of a conversation turn besides its content, in characters."""
TOOL_CHARS = 1024
"""Estimated size of a tool's description, in characters."""
MOST_VARIABLES_BYTES = 64 << 10
"""Most bytes of `chat_template_kwargs` as JSON."""
OWN = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
"""Variables of templates that are fields of a request."""

Recall = Callable[[Message], Sampled | None]


def forgotten(message: Message) -> None:
    """Remember no message."""


async def tokens_of_chat(
    request: ChatRequest | Tokenize,
    tokenizer: Tokenizer,
    most: int,
    recall: Recall = forgotten,
    tools: Sequence[Tool] = (),
) -> tuple[int, ...]:
    """Token ids of a conversation, as the request wants it to end.

    Args:
        recall: finds the tokens that were sampled for a message, if they are remembered. Long
            conversations call it in a thread.
        tools: those that the model is shown.

    Raises:
        Invalid: fields of the request contradict each other, or there are far more than `most`.
    """
    messages = request.messages or []

    def chat() -> tuple[int, ...]:
        variables = variables_of(request)
        continues = _continues(request, messages)
        check_results(messages)
        ids = tokenizer.chat(
            turns_of(messages, recall),
            not continues and request.add_generation_prompt is not False,
            most,
            [described(tool) for tool in tools],
            continue_final_message=continues,
            variables=variables,
        )
        return tuple(ids)

    return await threaded(_chars(messages, tools), chat)


def _chars(messages: Sequence[Message], tools: Sequence[Tool]) -> int:
    """Estimated characters of a conversation; counted no further than matters to `threaded`."""
    chars = TOOL_CHARS * len(tools)
    for more in _lengths(messages):
        if chars >= HUGE_TEXT:
            break
        chars += more
    return chars


def _lengths(messages: Sequence[Message]) -> Iterator[int]:
    for message in messages:
        parts = message.content or ()
        yield TURN_CHARS + len(message.reasoning_content or "")
        for part in (parts,) if isinstance(parts, str) else parts:
            yield len(part) if isinstance(part, str) else TURN_CHARS + len(part.said)
        for call in message.tool_calls or ():
            yield TURN_CHARS + len(call.function.arguments)


def check_no_chat(request: Tokenize) -> None:
    """Raise Invalid if a request to tokenise a text has fields that are about conversations."""
    for field in ("continue_final_message", "chat_template_kwargs", "documents", "tools"):
        if getattr(request, field):
            raise Invalid(f"`{field}` needs `messages`", field, BAD)


def turns_of(messages: Sequence[Message], recall: Recall = forgotten) -> list[dict[str, Any]]:
    """Messages as chat templates take them; arguments of calls are objects if they can be."""
    names: dict[str, str] = {}
    turns = []
    for message in messages:
        calls = [_call(call) for call in message.tool_calls or ()]
        names |= {call["id"]: call["function"]["name"] for call in calls}
        # templates have no developer role: OpenAI's newer name for the system role
        role = "system" if message.role == "developer" else message.role
        turn: dict[str, Any] = {"role": role, "content": message.said}
        if message.role == "tool":
            call_id = message.tool_call_id or ""
            turn |= {"tool_call_id": call_id, "name": message.name or names.get(call_id, "")}
        if message.role == "assistant" and message.reasoning_content:
            turn["reasoning_content"] = message.reasoning_content
        if calls:
            turn["tool_calls"] = calls
        if (sampled := recall(message)) is not None:
            turn[SAMPLED] = sampled
        turns.append(turn)
    return turns


def _call(call: ToolCall) -> dict[str, Any]:
    arguments: object = call.function.arguments
    try:
        parsed = msgspec.json.decode(call.function.arguments or "{}")
        arguments = parsed if isinstance(parsed, dict) else arguments
    except (msgspec.DecodeError, RecursionError):
        pass
    function = {"name": call.function.name, "arguments": arguments}
    return {"type": "function", "id": call.id, "function": function}


def variables_of(request: ChatRequest | Tokenize) -> dict[str, Any]:
    """The variables of the template. Raises Invalid if they are too large, or fields."""
    variables = request.chat_template_kwargs or {}
    for name in variables:
        if name in OWN:
            raise Invalid(
                f"`chat_template_kwargs` has {name!r}: send it as a field of the request",
                "chat_template_kwargs",
                BAD,
            )
    if len(msgspec.json.encode(variables)) > MOST_VARIABLES_BYTES:
        raise Invalid(
            f"`chat_template_kwargs` is over {MOST_VARIABLES_BYTES} bytes of JSON",
            "chat_template_kwargs",
            BAD,
        )
    if request.documents:
        return {**variables, "documents": request.documents}
    return variables


def _continues(request: ChatRequest | Tokenize, messages: list[Message]) -> bool:
    """Whether the answer goes on in the last message. Raises Invalid if it cannot."""
    if not request.continue_final_message:
        return False
    if request.add_generation_prompt:
        raise Invalid(
            "`continue_final_message` and `add_generation_prompt` exclude each other: send one",
            "continue_final_message",
            BAD,
        )
    if not messages[-1].said.strip() or messages[-1].tool_calls:
        raise Invalid(
            "`continue_final_message` needs a last message with content, and without calls",
            "continue_final_message",
            BAD,
        )
    return True
