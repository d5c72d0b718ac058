"""The events of a stream of the Responses API."""

from sps2.common.api import ChatLogprob
from sps2.common.messages import Struct
from sps2.services.gateway.protocols.responses.answers import (
    Output,
    OutputText,
    ReasoningText,
    Response,
)


class Event(Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of all events; they are numbered from 0."""

    sequence_number: int


class ResponseEvent(Event, frozen=True, kw_only=True):
    response: Response


class Created(ResponseEvent, frozen=True, kw_only=True, tag="response.created"):
    pass


class InProgress(ResponseEvent, frozen=True, kw_only=True, tag="response.in_progress"):
    pass


class Completed(ResponseEvent, frozen=True, kw_only=True, tag="response.completed"):
    pass


class Incomplete(ResponseEvent, frozen=True, kw_only=True, tag="response.incomplete"):
    pass


class Failed(ResponseEvent, frozen=True, kw_only=True, tag="response.failed"):
    pass


class ItemEvent(Event, frozen=True, kw_only=True):
    output_index: int
    item: Output


class ItemAdded(ItemEvent, frozen=True, kw_only=True, tag="response.output_item.added"):
    pass


class ItemDone(ItemEvent, frozen=True, kw_only=True, tag="response.output_item.done"):
    pass


class InItem(Event, frozen=True, kw_only=True):
    """Base of events about a part of an item."""

    output_index: int
    item_id: str


class PartEvent(InItem, frozen=True, kw_only=True):
    content_index: int
    part: OutputText | ReasoningText


class PartAdded(PartEvent, frozen=True, kw_only=True, tag="response.content_part.added"):
    pass


class PartDone(PartEvent, frozen=True, kw_only=True, tag="response.content_part.done"):
    pass


class TextDelta(InItem, frozen=True, kw_only=True, tag="response.output_text.delta"):
    content_index: int
    delta: str
    logprobs: tuple[ChatLogprob, ...]


class TextDone(InItem, frozen=True, kw_only=True, tag="response.output_text.done"):
    content_index: int
    text: str
    logprobs: tuple[ChatLogprob, ...]


class ReasoningDelta(InItem, frozen=True, kw_only=True, tag="response.reasoning_text.delta"):
    content_index: int
    delta: str


class ReasoningDone(InItem, frozen=True, kw_only=True, tag="response.reasoning_text.done"):
    content_index: int
    text: str


class ArgumentsDelta(
    InItem, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"
):
    delta: str


class ArgumentsDone(InItem, frozen=True, kw_only=True, tag="response.function_call_arguments.done"):
    name: str
    arguments: str
