"""Turns a request of the Responses API into a chat, and into the beginning of its response."""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec

from sps2.common import api
from sps2.common.api import (
    ChatRequest,
    Function,
    FunctionCall,
    FunctionReference,
    Message,
    NamedTool,
    StreamOptions,
    TextPart,
    ToolCall,
    ToolChoice,
)
from sps2.common.api.drawing import Drawing
from sps2.common.api.structured import JsonSchema, ResponseFormat
from sps2.common.api.tools import AllowedTools, ToolReference
from sps2.common.errors import Invalid
from sps2.services.gateway.protocols.responses.answers import (
    ReasoningEcho,
    Response,
    TextEcho,
)
from sps2.services.gateway.protocols.responses.items import Item, Part, text_of
from sps2.services.gateway.protocols.responses.requests import (
    LOGPROBS,
    Choice,
    Format,
    ResponsesRequest,
    Tool,
)
from sps2.services.gateway.protocols.responses.store import NOT_FOUND, Stored

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}


class Earlier(Protocol):
    """Where earlier responses are found; see `Responses`."""

    def get(self, response_id: str, owner: str, field: str | None = None) -> Stored: ...
    def items(self, owner: str) -> dict[str, Item]: ...


class Asked(NamedTuple):
    """A translated request.

    chat: what is asked of the model. items: all that the response answers, those of earlier
    responses included. request: as it was sent.
    """

    chat: ChatRequest
    items: tuple[Item, ...]
    request: ResponsesRequest


def asked(request: ResponsesRequest, stored: Earlier, owner: str) -> Asked:
    """Translate a request.

    Args:
        stored: where earlier responses are found.
        owner: whose they must be.

    Raises:
        Invalid: naming the field at fault.
    """
    if request.background and (request.stream or request.store is False):
        name = "stream" if request.stream else "store"
        raise Invalid(
            f"`background` does not go with `{name}` {str(bool(request.stream)).lower()}: leave "
            "one of them out, and ask for the response by its id",
            name,
            "invalid_value",
        )
    items = tuple(_items(request, stored, owner))
    listed = LOGPROBS in (request.include or ())
    if request.top_logprobs and not listed:
        raise Invalid(
            f"`top_logprobs` needs `{LOGPROBS}` in `include`", "top_logprobs", "invalid_value"
        )
    chat = ChatRequest(
        model=request.model,
        messages=_messages(request.instructions, items),
        max_tokens=request.max_output_tokens,
        tools=[_tool(each) for each in request.tools] if request.tools else None,
        tool_choice=_choice(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_response_format(_format(request)),
        logprobs=listed or None,
        top_logprobs=request.top_logprobs if listed else None,
        cache_salt=request.cache_salt,
        chat_template_kwargs=request.chat_template_kwargs,
        stream=True,
        stream_options=StreamOptions(include_usage=True),
        **{name: getattr(request, name) for name in Drawing.__struct_fields__},
    )
    return Asked(chat, items, request)


def begun(request: ResponsesRequest, response_id: str, model: str) -> Response:
    """The response to a request, before there is any output."""
    choice = request.tool_choice or "auto"
    return Response(
        id=response_id,
        created_at=int(time.time()),
        status="in_progress",
        background=bool(request.background),
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        metadata=request.metadata or {},
        model=model,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        reasoning=ReasoningEcho(request.reasoning.effort if request.reasoning else None),
        store=request.store is not False,
        temperature=request.temperature,
        text=TextEcho(_format(request)),
        tool_choice=choice,
        tools=request.tools or [],
        top_logprobs=request.top_logprobs or 0,
        top_p=request.top_p,
    )


def new_id(kind: str) -> str:
    """A random id of an item of a type."""
    return f"{_PREFIXES.get(kind, 'rs')}_{secrets.token_hex(12)}"


def _items(request: ResponsesRequest, stored: Earlier, owner: str) -> Iterator[Item]:
    if request.previous_response_id is not None:
        previous = stored.get(request.previous_response_id, owner, "previous_response_id")
        if previous.response.status not in ("completed", "incomplete"):
            raise Invalid(
                f"response {request.previous_response_id} is {previous.response.status}: only one "
                "that is completed can be continued",
                "previous_response_id",
                "invalid_value",
            )
        yield from previous.conversation
    if isinstance(request.input, str):
        yield _stored(Item(type="message", role="user", content=request.input))
        return
    known: dict[str, Item] | None = None
    for index, item in enumerate(request.input):
        if item.kind == "item_reference":
            known = stored.items(owner) if known is None else known
            yield _taken(known, item.id or "", f"input[{index}].id")
        else:
            yield _stored(item)


def _taken(known: dict[str, Item], item_id: str, field: str) -> Item:
    """Take the item that a reference stands for: once, else a small body were a huge prompt."""
    if item_id not in known:
        raise Invalid(
            f"no stored response has an item {item_id[:80]!r}, or an earlier reference stands for "
            "it: send the item itself",
            field,
            NOT_FOUND,
        )
    return known.pop(item_id)


def _stored(item: Item) -> Item:
    """An item in the form in which it is listed: with an id, and a message's content in parts."""
    content = item.content
    if item.kind == "message" and isinstance(content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        content = [Part(type=kind, text=content)]  # type: ignore[arg-type]
    return msgspec.structs.replace(
        item,
        type=item.kind,
        id=item.id or new_id(item.kind),
        content=content,
        encrypted_content=None,
    )


def _messages(instructions: str | None, items: Sequence[Item]) -> list[Message]:
    """The messages of a chat: items of one turn of the assistant become one message."""
    messages: list[Message] = []
    orders = [] if instructions is None else [instructions]
    turn, calls = _Turn(), set[str]()
    for item in items:
        is_order = item.kind == "message" and item.role in ("system", "developer")
        if is_order and not messages and turn.is_empty:
            # many chat templates have a place for one system message, at the beginning
            orders.append(text_of(item.content))
            continue
        if orders:
            messages.append(Message("system", "\n".join(orders)))
            orders = []
        if turn.takes(item):
            continue
        if not turn.is_empty:
            messages += turn.whole()
            calls = {each.id for each in turn.calls}
            turn = _Turn()
        if item.kind == "function_call_output":
            _check_result(item, calls)
            messages.append(Message("tool", text_of(item.output), tool_call_id=item.call_id))
        else:
            messages.append(Message(item.role or "user", text_of(item.content)))
    if orders:
        messages.append(Message("system", "\n".join(orders)))
    return messages + turn.whole()


def _check_result(item: Item, calls: set[str]) -> None:
    """Raise Invalid if a result is of none of the calls in the last turn of the assistant."""
    if item.call_id not in calls:
        raise Invalid(
            f"`input` has the result of a call {(item.call_id or '')[:80]!r}, but no such "
            "`function_call` in the assistant's turn before it",
            "input",
            "invalid_value",
        )


@dataclass
class _Turn:
    """A turn of the assistant, of several items."""

    texts: list[TextPart] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.texts or self.thoughts or self.calls)

    def takes(self, item: Item) -> bool:
        """Add an item. False if it is not of the assistant."""
        if item.kind == "message" and item.role == "assistant":
            self.texts.append(TextPart(text_of(item.content)))
        elif item.kind == "function_call":
            call = FunctionCall(item.name or "", item.arguments or "")
            self.calls.append(ToolCall(item.call_id or "", call))
        elif item.kind == "reasoning":
            self.thoughts.append(text_of(item.content) or text_of(item.summary))
        else:
            return False
        return True

    def whole(self) -> list[Message]:
        if self.is_empty:
            return []
        return [
            Message(
                "assistant",
                self.texts or None,
                tool_calls=self.calls or None,
                reasoning_content="\n".join(filter(None, self.thoughts)) or None,
            )
        ]


def _tool(given: Tool) -> api.Tool:
    return api.Tool(
        function=Function(given.name, given.description, given.parameters, given.strict)
    )


def _choice(given: str | Choice | None) -> ToolChoice | None:
    if not isinstance(given, Choice):
        return given  # type: ignore[return-value]
    if given.type == "function":
        return NamedTool(function=FunctionReference(given.name or ""))
    tools = [ToolReference(function=FunctionReference(each.name)) for each in given.tools or ()]
    return NamedTool(type="allowed_tools", allowed_tools=AllowedTools(given.mode or "auto", tools))


def _format(request: ResponsesRequest) -> Format:
    return (request.text and request.text.format) or Format(type="text")


def _response_format(given: Format) -> ResponseFormat | None:
    if given.type == "json_schema":
        return ResponseFormat("json_schema", JsonSchema(given.schema or {}, strict=given.strict))
    return None if given.type == "text" else ResponseFormat(given.type)
