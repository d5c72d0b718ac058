"""Messages of a conversation as clients send them, earlier answers of this API included."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from sps2.common.api.tools import ToolCall
from sps2.common.api.unsupported_fields import Tolerant, ignored, only

OLD_FUNCTIONS = "it is deprecated: send `tools`, `tool_choice` and `tool_calls`"
TEXT_ALONE = "models read text alone here"
OTHER_THINKING = "send `reasoning_content`"
OTHER_PARTS = ("image_url", "input_image", "input_audio", "audio_url", "video_url", "file")

ChatRole = Literal["system", "developer", "user", "assistant", "tool"]
Role = Annotated[ChatRole, Meta(extra={"unsupported": {"function": OLD_FUNCTIONS}})]
PartType = Annotated[
    Literal["text", "refusal"], Meta(extra={"unsupported": dict.fromkeys(OTHER_PARTS, TEXT_ALONE)})
]
Nothing = Annotated[Any, only(why=TEXT_ALONE)]


class TextPart(Tolerant, frozen=True):
    """A part of a message's content."""

    text: Annotated[str | None, Meta(description="the text of a part of type `text`")] = None
    type: Annotated[PartType | None, Meta(description="`text` if absent")] = None
    refusal: Annotated[str | None, Meta(description="the text of a part of type `refusal`")] = None
    cache_control: Annotated[Any, ignored("prefixes are cached automatically")] = None
    prompt_cache_breakpoint: Annotated[Any, ignored("as `cache_control`")] = None
    annotations: Annotated[Any, ignored("about the text, not part of the text")] = None
    id: Annotated[Any, ignored("about the text, not part of the text")] = None
    index: Annotated[Any, ignored("parts are in the order in which they are given")] = None
    image_url: Nothing = None
    input_audio: Nothing = None
    audio_url: Nothing = None
    video_url: Nothing = None
    file: Nothing = None

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = self.type or "text"
        if getattr(self, kind) is None:
            raise ValueError(f"Object missing required field `{kind}`")

    @property
    def said(self) -> str:
        """The part's text: its refusal if it is one; empty if absent."""
        return (self.refusal if self.type == "refusal" else self.text) or ""


class Message(Tolerant, frozen=True):
    """One turn of a conversation. An assistant's may lack `content`, which then is empty.

    A turn of role `tool` is the result of a call.
    """

    role: Annotated[Role, Meta(description="who speaks; a `developer` is the `system`")]
    content: Annotated[
        str | list[TextPart] | None, Meta(description="parts are joined by a newline")
    ] = None
    name: Annotated[
        str | None,
        Meta(description="of the function, in a turn of role `tool`; ignored in other turns"),
    ] = None
    refusal: Annotated[
        str | None, Meta(description="what an assistant said where it has no `content`")
    ] = None
    tool_calls: Annotated[
        list[ToolCall] | None, Meta(description="the calls of an assistant's turn")
    ] = None
    function_call: Annotated[Any, only(why=OLD_FUNCTIONS)] = None
    tool_call_id: Annotated[
        str | None, Meta(description="the call whose result a turn of role `tool` is")
    ] = None
    audio: Annotated[Any, only(why=TEXT_ALONE)] = None
    images: Annotated[list[Any] | None, only([], why=TEXT_ALONE)] = None
    reasoning: Annotated[Any, only("", why=OTHER_THINKING)] = None
    reasoning_content: Annotated[
        str | None,
        Meta(
            description="what an assistant thought before it answered, for chat templates that "
            "use it"
        ),
    ] = None
    reasoning_details: Annotated[list[Any] | None, only([], why=OTHER_THINKING)] = None
    thinking_blocks: Annotated[list[Any] | None, only([], why=OTHER_THINKING)] = None
    annotations: Annotated[Any, ignored("about the content, not part of the content")] = None
    citations: Annotated[Any, ignored("about the content, not part of the content")] = None
    parsed: Annotated[Any, ignored("what a client made of the content")] = None
    provider_specific_fields: Annotated[Any, ignored("notes of litellm")] = None
    cache_control: Annotated[Any, ignored("prefixes are cached automatically")] = None
    prefix: Annotated[bool | None, only(False, why="send `continue_final_message`")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.content is None and self.role != "assistant":
            raise ValueError("Object missing required field `content`")
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("Object missing required field `tool_call_id`")
        for name, role in (("tool_calls", "assistant"), ("tool_call_id", "tool")):
            if getattr(self, name) and self.role != role:
                raise ValueError(
                    f"unsupported field `{name}`: only a turn of role `{role}` has it; leave it out"
                )

    @property
    def said(self) -> str:
        """The turn's text; parts are joined by newlines."""
        if self.content is None:
            return self.refusal or ""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.said for part in self.content)
