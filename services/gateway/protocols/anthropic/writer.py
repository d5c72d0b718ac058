"""Turns the chunks of a chat into the events of the Messages API, and into the whole message."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from sps2.common.api import ChatChunk, ChatDelta
from sps2.common.api.usage import Usage as ChatUsage
from sps2.common.errors import Internal
from sps2.services.gateway.protocols.anthropic.answers import (
    Block,
    BlockChange,
    BlockDelta,
    BlockStart,
    BlockStop,
    Ending,
    Event,
    InputJsonDelta,
    Message,
    MessageChange,
    MessageStart,
    MessageStop,
    SignatureDelta,
    StopReason,
    Text,
    TextDelta,
    ThinkingDelta,
    Thought,
    ToolUse,
    Usage,
)

SIGNATURE = "sps2"
"""Clients send it back with a thought; it proves nothing."""
_STOP: dict[str, StopReason] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
}


class MessageWriter:
    """The message of one answer.

    Args:
        message_id: of the message.
        model: its name in the answer.
        max_tokens: as requested.
    """

    def __init__(self, message_id: str, model: str, max_tokens: int) -> None:
        self._id = message_id
        self._max_tokens = max_tokens
        self._model = model
        self._open: _Open | None = None
        self._blocks: list[Block] = []
        self._ending = Ending("end_turn")
        self._usage: ChatUsage | None = None

    async def events(self, chunks: AsyncGenerator[ChatChunk, None]) -> AsyncGenerator[Event, None]:
        """The events of a stream, as the chunks come; the first begins with the first chunk.

        Raises:
            Internal: the usage is missing.
        """
        begun = False
        async with aclosing(chunks):
            async for chunk in chunks:
                self._usage = chunk.usage or self._usage
                if not begun:
                    begun = True
                    start = msgspec.structs.replace(self._whole_usage(), output_tokens=0)
                    yield MessageStart(self._message(start))
                for choice in chunk.choices:
                    for event in self._add(choice):
                        yield event
        for event in self._close():
            yield event
        usage = self._whole_usage()
        if self._ending.stop_reason == "max_tokens" and usage.output_tokens < self._max_tokens:
            self._ending = Ending("model_context_window_exceeded")
        yield MessageChange(self._ending, usage)
        yield MessageStop()

    async def message(self, chunks: AsyncGenerator[ChatChunk, None]) -> Message:
        """The whole message. Raises Internal if the usage is missing."""
        async for _ in self.events(chunks):
            pass
        whole = self._message(self._whole_usage())
        return msgspec.structs.replace(
            whole,
            content=self._blocks,
            stop_reason=self._ending.stop_reason,
            stop_sequence=self._ending.stop_sequence,
        )

    def _message(self, usage: Usage) -> Message:
        return Message(id=self._id, model=self._model, content=[], usage=usage)

    def _whole_usage(self) -> Usage:
        if self._usage is None:
            raise Internal("the answer ended without its usage")
        cached = self._usage.prompt_tokens_details.cached_tokens
        return Usage(self._usage.prompt_tokens - cached, self._usage.completion_tokens, cached)

    def _add(self, choice: ChatDelta) -> Iterator[Event]:
        delta = choice.delta
        if delta.reasoning_content:
            yield from self._part(_Open("thinking"), delta.reasoning_content)
        if delta.content:
            yield from self._part(_Open("text"), delta.content)
        for call in delta.tool_calls or ():
            function = call.function
            opened = _Open("tool_use", call.index, call.id or "", function.name or "")
            yield from self._part(opened, function.arguments or "")
        if choice.finish_reason is not None:
            if isinstance(choice.stop_reason, str):
                self._ending = Ending("stop_sequence", choice.stop_reason)
            else:
                self._ending = Ending(_STOP[choice.finish_reason])

    def _part(self, part: "_Open", text: str) -> Iterator[Event]:
        """Add text to the open block, or to `part` if that is another, which then is opened."""
        if self._open is None or self._open.place != part.place:
            yield from self._close()
            self._open = part
            yield BlockStart(len(self._blocks), part.begun())
        if text:
            self._open.parts.append(text)
            yield BlockChange(len(self._blocks), self._open.delta(text))

    def _close(self) -> Iterator[Event]:
        if self._open is None:
            return
        if self._open.kind == "thinking":
            yield BlockChange(len(self._blocks), SignatureDelta(SIGNATURE))
        yield BlockStop(len(self._blocks))
        self._blocks.append(self._open.whole())
        self._open = None


@dataclass
class _Open:
    """The block that grows. `call` is the number of a call among the calls of the answer."""

    kind: Literal["text", "thinking", "tool_use"]
    call: int = 0
    id: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list)

    @property
    def place(self) -> tuple[str, int]:
        return self.kind, self.call

    def begun(self) -> Block:
        match self.kind:
            case "text":
                return Text("")
            case "thinking":
                return Thought("", "")
            case "tool_use":
                return ToolUse(self.id, self.name, {})

    def delta(self, text: str) -> BlockDelta:
        match self.kind:
            case "text":
                return TextDelta(text)
            case "thinking":
                return ThinkingDelta(text)
            case "tool_use":
                return InputJsonDelta(text)

    def whole(self) -> Block:
        text = "".join(self.parts)
        match self.kind:
            case "text":
                return Text(text)
            case "thinking":
                return Thought(text, SIGNATURE)
            case "tool_use":
                return ToolUse(self.id, self.name, _input(text))


def _input(arguments: str) -> dict[str, Any]:
    """The arguments of a call; none if `max_tokens` cut them off, which `stop_reason` says."""
    try:
        return msgspec.json.decode(arguments, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}
