"""The answers of the Responses API."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sps2.common.api import ChatLogprob
from sps2.common.messages import Struct
from sps2.services.gateway.protocols.responses.items import Item
from sps2.services.gateway.protocols.responses.requests import Choice, Format, Tool

Status = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(Struct, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    text: str
    annotations: tuple[Any, ...] = ()
    logprobs: tuple[ChatLogprob, ...] = ()


class ReasoningText(Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    text: str


class OutputMessage(Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class OutputCall(Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


class OutputReasoning(Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    id: str
    status: ItemStatus
    summary: tuple[Any, ...] = ()
    content: list[ReasoningText]


Output = OutputMessage | OutputCall | OutputReasoning


class InputDetails(Struct, frozen=True):
    cached_tokens: Annotated[int, Meta(description="of the prompt, whose KV was cached")] = 0


class OutputDetails(Struct, frozen=True):
    reasoning_tokens: Annotated[
        int, Meta(description="0: thoughts are counted with the rest of the answer")
    ] = 0


class Usage(Struct, frozen=True):
    """Tokens of a response."""

    input_tokens: Annotated[int, Meta(description="of the prompt")]
    output_tokens: Annotated[int, Meta(description="of the answer, thoughts and calls included")]
    total_tokens: Annotated[int, Meta(description="the sum of both")]
    input_tokens_details: InputDetails = InputDetails()
    output_tokens_details: OutputDetails = OutputDetails()


class Failure(Struct, frozen=True):
    """Why a response failed."""

    code: str
    message: str


class Incomplete(Struct, frozen=True):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class TextEcho(Struct, frozen=True):
    format: Format


class ReasoningEcho(Struct, frozen=True):
    effort: Any = None
    summary: None = None


class Response(Struct, frozen=True, kw_only=True):
    """The answer of `/v1/responses`."""

    id: str
    object: Literal["response"] = "response"
    created_at: Annotated[int, Meta(description="seconds since the epoch")]
    status: Status
    background: bool
    error: Failure | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None = None
    metadata: dict[str, str]
    model: str
    output: tuple[Output, ...] = ()
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: ReasoningEcho
    service_tier: Literal["default"] = "default"
    store: bool
    temperature: float | None
    text: TextEcho
    tool_choice: str | Choice
    tools: list[Tool]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"] = "disabled"
    usage: Usage | None = None
    user: None = None


class Deleted(Struct, frozen=True, kw_only=True):
    """The answer of a deletion."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class ItemList(Struct, frozen=True, kw_only=True):
    """Items that a response answers."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


_items = msgspec.json.Decoder(list[Item])


def as_items(output: Sequence[Output]) -> list[Item]:
    """Output as input of the next response."""
    return _items.decode(msgspec.json.encode(output))
