"""Messages of a conversation as clients send them, earlier answers of this API included."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from sps2.common.api.unsupported_fields import Tolerant, ignored, only

NO_FUNCTIONS = "models cannot call functions here"
TEXT_ALONE = "models read text alone here"
NO_THINKING = "earlier thoughts are not shown to the model"
OTHER_PARTS = ("image_url", "input_image", "input_audio", "audio_url", "video_url", "file")

ChatRole = Literal["system", "developer", "user", "assistant"]
Role = Annotated[
    ChatRole, Meta(extra={"unsupported": dict.fromkeys(("tool", "function"), NO_FUNCTIONS)})
]
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
    """One turn of a conversation. An assistant's may lack `content`, which then is empty."""

    role: Annotated[Role, Meta(description="who speaks; a `developer` is the `system`")]
    content: Annotated[
        str | list[TextPart] | None, Meta(description="parts are joined by a newline")
    ] = None
    name: Annotated[str | None, ignored("templates of models have no place for it")] = None
    refusal: Annotated[
        str | None, Meta(description="what an assistant said where it has no `content`")
    ] = None
    tool_calls: Annotated[list[Any] | None, only([], why=NO_FUNCTIONS)] = None
    function_call: Annotated[Any, only(why=NO_FUNCTIONS)] = None
    tool_call_id: Annotated[Any, only("", why=NO_FUNCTIONS)] = None
    audio: Annotated[Any, only(why=TEXT_ALONE)] = None
    images: Annotated[list[Any] | None, only([], why=TEXT_ALONE)] = None
    reasoning: Annotated[Any, only("", why=NO_THINKING)] = None
    reasoning_content: Annotated[Any, only("", why=NO_THINKING)] = None
    reasoning_details: Annotated[list[Any] | None, only([], why=NO_THINKING)] = None
    thinking_blocks: Annotated[list[Any] | None, only([], why=NO_THINKING)] = None
    annotations: Annotated[Any, ignored("about the content, not part of the content")] = None
    citations: Annotated[Any, ignored("about the content, not part of the content")] = None
    parsed: Annotated[Any, ignored("what a client made of the content")] = None
    provider_specific_fields: Annotated[Any, ignored("notes of litellm")] = None
    cache_control: Annotated[Any, ignored("prefixes are cached automatically")] = None
    prefix: Annotated[bool | None, only(False, why="an answer is always a turn of its own")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.content is None and self.role != "assistant":
            raise ValueError("Object missing required field `content`")

    @property
    def said(self) -> str:
        """The turn's text; parts are joined by newlines."""
        if self.content is None:
            return self.refusal or ""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.said for part in self.content)
