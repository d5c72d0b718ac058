"""Turns a request of the Messages API into a chat."""

from collections.abc import Iterator
from typing import Any

import msgspec

from sps2.common.api import (
    ChatRequest,
    Extension,
    Function,
    FunctionCall,
    FunctionReference,
    Message,
    NamedTool,
    StreamOptions,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from sps2.common.api.structured import JsonSchema, ResponseFormat
from sps2.common.errors import Invalid
from sps2.services.gateway.protocols.anthropic import requests
from sps2.services.gateway.protocols.anthropic.requests import (
    Block,
    Conversation,
    MessagesRequest,
    TextBlock,
    Turn,
)

JOINER = "\n"


def chat_of(request: MessagesRequest) -> ChatRequest:
    """The chat that a request is. Raises Invalid, naming the field at fault."""
    return msgspec.structs.replace(
        conversation(request),
        max_tokens=request.max_tokens,
        sps2=Extension(cut_max_tokens=True),
        stop=request.stop_sequences,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        stream=True,
        stream_options=StreamOptions(include_usage=True, continuous_usage_stats=True),
    )


def conversation(request: Conversation) -> ChatRequest:
    """The part of a chat that its prompt depends on. Raises Invalid, naming the field at fault."""
    messages = [] if request.system is None else [Message("system", _text(request.system))]
    for index, turn in enumerate(request.messages):
        messages += _turns(turn, f"messages[{index}]")
        _check_results(request.messages[index - 1] if index else None, turn, f"messages[{index}]")
    choice = request.tool_choice
    kwargs: dict[str, Any] | None = None
    if request.thinking is not None and request.thinking.type in ("enabled", "disabled"):
        kwargs = {"enable_thinking": request.thinking.type == "enabled"}
    form = request.output_config.format if request.output_config else None
    goes_on = messages[-1].role == "assistant" and not messages[-1].tool_calls
    return ChatRequest(
        model=request.model,
        messages=messages,
        tools=[_tool(each) for each in request.tools] if request.tools else None,
        tool_choice=_choice(request),
        parallel_tool_calls=False if choice and choice.disable_parallel_tool_use else None,
        chat_template_kwargs=kwargs,
        continue_final_message=goes_on or None,
        add_generation_prompt=False if goes_on else None,
        response_format=ResponseFormat("json_schema", JsonSchema(form.schema)) if form else None,
    )


def _turns(turn: Turn, at: str) -> Iterator[Message]:
    """The messages of one turn: results of tools come first, each as a message of its own.

    Args:
        at: where the turn is, for errors.
    """
    if isinstance(turn.content, str):
        yield Message(turn.role, turn.content)
        return
    if not turn.content and turn.role != "assistant":
        field = f"{at}.content"
        raise Invalid(f"`{field}` is empty: a turn has a block at least", field, "invalid_value")
    texts: list[TextPart] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for index, block in enumerate(turn.content):
        where = f"{at}.content[{index}]"
        match block.type:
            case "text":
                texts.append(TextPart(block.text))
            case "tool_result":
                _check_role(turn, "user", block, where)
                yield Message("tool", _result(block), tool_call_id=block.tool_use_id)
            case "tool_use":
                _check_role(turn, "assistant", block, where)
                calls.append(_call(block))
            case "thinking":
                _check_role(turn, "assistant", block, where)
                thoughts.append(block.thinking or "")
            case "redacted_thinking":
                _check_role(turn, "assistant", block, where)
    if turn.role == "assistant":
        yield Message(
            "assistant",
            texts or None,
            tool_calls=calls or None,
            reasoning_content=JOINER.join(thoughts) or None,
        )
    elif texts:
        yield Message(turn.role, texts)


def _check_results(before: Turn | None, turn: Turn, at: str) -> None:
    """Raise Invalid if a result in `turn` is of no call in the turn `before`."""
    calls = {block.id for block in _blocks(before)}
    for index, block in enumerate(_blocks(turn)):
        if block.type == "tool_result" and block.tool_use_id not in calls:
            field = f"{at}.content[{index}].tool_use_id"
            raise Invalid(
                f"`{field}` is of no call: a `tool_result` is in the turn after that of the "
                "`tool_use` whose id it has",
                field,
                "invalid_value",
            )


def _blocks(turn: Turn | None) -> list[Block]:
    return [] if turn is None or isinstance(turn.content, str) else turn.content


def _check_role(turn: Turn, role: str, block: Block, where: str) -> None:
    if turn.role != role:
        raise Invalid(
            f"`{where}`: a block of type `{block.type}` is only in a turn of the {role}",
            where,
            "invalid_value",
        )


def _call(block: Block) -> ToolCall:
    arguments = msgspec.json.encode(block.input).decode()
    return ToolCall(block.id or "", FunctionCall(block.name or "", arguments))


def _result(block: Block) -> str:
    said = block.content if isinstance(block.content, str) else _joined(block.content or [])
    return f"Error: {said}" if block.is_error else said


def _text(given: str | list[TextBlock]) -> str:
    return given if isinstance(given, str) else _joined(given)


def _joined(blocks: list[TextBlock]) -> str:
    return JOINER.join(each.text or "" for each in blocks)


def _tool(given: requests.Tool) -> Tool:
    return Tool(function=Function(given.name, given.description, given.input_schema, given.strict))


def _choice(request: Conversation) -> ToolChoice | None:
    choice = request.tool_choice
    if choice is None:
        return None
    if choice.type == "tool":
        return NamedTool(function=FunctionReference(choice.name or ""))
    return "required" if choice.type == "any" else choice.type
