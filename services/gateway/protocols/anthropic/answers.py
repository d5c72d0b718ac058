"""The answers of the Messages API, whole and as events of a stream."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from sps2.common.messages import Struct

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class Text(Struct, frozen=True, tag_field="type", tag="text"):
    text: str
    citations: None = None


class ToolUse(Struct, frozen=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class Thought(Struct, frozen=True, tag_field="type", tag="thinking"):
    thinking: str
    signature: str


Block = Text | ToolUse | Thought


class Usage(Struct, frozen=True):
    """Tokens of a request; those of the prompt are the sum of all that begin with `input` or
    `cache`."""

    input_tokens: Annotated[int, Meta(description="of the prompt, computed for this request")]
    output_tokens: Annotated[int, Meta(description="of the answer, thoughts and calls included")]
    cache_read_input_tokens: Annotated[
        int, Meta(description="of the prompt, whose KV was cached")
    ] = 0
    cache_creation_input_tokens: Annotated[
        int, Meta(description="0: `input_tokens` has them, since all pages are cached")
    ] = 0


class Message(Struct, frozen=True, kw_only=True):
    """The answer of `/v1/messages`."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Block]
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: Usage


class TokenCount(Struct, frozen=True):
    """The answer of `/v1/messages/count_tokens`."""

    input_tokens: Annotated[int, Meta(description="tokens of the prompt, tools included")]


class TextDelta(Struct, frozen=True, tag_field="type", tag="text_delta"):
    text: str


class InputJsonDelta(Struct, frozen=True, tag_field="type", tag="input_json_delta"):
    partial_json: str


class ThinkingDelta(Struct, frozen=True, tag_field="type", tag="thinking_delta"):
    thinking: str


class SignatureDelta(Struct, frozen=True, tag_field="type", tag="signature_delta"):
    signature: str


BlockDelta = TextDelta | InputJsonDelta | ThinkingDelta | SignatureDelta


class MessageStart(Struct, frozen=True, tag_field="type", tag="message_start"):
    message: Message


class BlockStart(Struct, frozen=True, tag_field="type", tag="content_block_start"):
    index: int
    content_block: Block


class BlockChange(Struct, frozen=True, tag_field="type", tag="content_block_delta"):
    index: int
    delta: BlockDelta


class BlockStop(Struct, frozen=True, tag_field="type", tag="content_block_stop"):
    index: int


class Ending(Struct, frozen=True):
    """Why the answer ended."""

    stop_reason: StopReason
    stop_sequence: str | None = None


class MessageChange(Struct, frozen=True, tag_field="type", tag="message_delta"):
    delta: Ending
    usage: Usage


class MessageStop(Struct, frozen=True, tag_field="type", tag="message_stop"):
    pass


class Ping(Struct, frozen=True, tag_field="type", tag="ping"):
    pass


Event = MessageStart | BlockStart | BlockChange | BlockStop | MessageChange | MessageStop | Ping


class Problem(Struct, frozen=True):
    type: str
    message: str


class ErrorBody(Struct, frozen=True, tag_field="type", tag="error"):
    """Anthropic's error object."""

    error: Problem
    request_id: str | UnsetType = UNSET
