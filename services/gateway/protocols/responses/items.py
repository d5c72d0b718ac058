"""The items of a conversation, as clients send them and as they are stored."""

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from sps2.common.api.conversation import TEXT_ALONE
from sps2.common.api.unsupported_fields import Tolerant, ignored, only

NO_SERVER_TOOLS = "tools are functions here, which the client runs"
OTHER_PARTS = ("input_image", "input_file", "input_audio", "computer_screenshot", "image_url")
SERVER_ITEMS = (
    *("file_search_call", "computer_call", "computer_call_output", "web_search_call"),
    *("tool_search_call", "tool_search_output", "additional_tools", "configuration_update"),
    *("image_generation_call", "code_interpreter_call", "local_shell_call"),
    *("local_shell_call_output", "shell_call", "shell_call_output", "apply_patch_call"),
    *("apply_patch_call_output", "mcp_list_tools", "mcp_approval_request"),
    *("mcp_approval_response", "mcp_call", "custom_tool_call", "custom_tool_call_output"),
    *("program", "program_output"),
)
COMPACTED = "conversations are not summarised here"

ItemType = Annotated[
    Literal["message", "function_call", "function_call_output", "reasoning", "item_reference"],
    Meta(
        extra={
            "unsupported": dict.fromkeys(SERVER_ITEMS, NO_SERVER_TOOLS)
            | dict.fromkeys(("compaction", "compaction_trigger"), COMPACTED)
        }
    ),
]
PartType = Annotated[
    Literal["input_text", "output_text", "refusal", "reasoning_text", "summary_text", "text"],
    Meta(extra={"unsupported": dict.fromkeys(OTHER_PARTS, TEXT_ALONE)}),
]
Nothing = Annotated[Any, only(why=TEXT_ALONE)]
ABOUT = "about the item, not part of it"


class Part(Tolerant, frozen=True, kw_only=True, omit_defaults=True):
    """A part of an item's content."""

    type: Annotated[PartType, Meta(description="all of them are text")]
    text: Annotated[str | None, Meta(description="the text, of all types but `refusal`")] = None
    refusal: Annotated[str | None, Meta(description="the text of a part of type `refusal`")] = None
    annotations: Annotated[Any, ignored("about the text, not part of the text")] = None
    logprobs: Annotated[Any, ignored("about the text, not part of the text")] = None
    prompt_cache_breakpoint: Annotated[Any, ignored("prefixes are cached automatically")] = None
    image_url: Nothing = None
    file_id: Nothing = None
    file_data: Nothing = None
    file_url: Nothing = None
    filename: Nothing = None
    input_audio: Nothing = None
    detail: Nothing = None

    def __post_init__(self) -> None:
        super().__post_init__()
        name = "refusal" if self.type == "refusal" else "text"
        if getattr(self, name) is None:
            raise ValueError(f"Object missing required field `{name}`")

    @property
    def said(self) -> str:
        """The part's text."""
        return (self.refusal if self.type == "refusal" else self.text) or ""


_NEEDED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
    "item_reference": ("id",),
}


class Item(Tolerant, frozen=True, kw_only=True, omit_defaults=True):
    """A message, a call of a function, its result, thoughts, or a reference to one of these."""

    type: Annotated[
        ItemType | None,
        Meta(description="if absent: `message` where there is a role, else `item_reference`"),
    ] = None
    id: Annotated[
        str | None,
        Meta(description="of an `item_reference`: an item of a stored response; else ignored"),
    ] = None
    role: Annotated[
        Literal["user", "assistant", "system", "developer"] | None,
        Meta(description="of a `message`: who speaks; a `developer` is the `system`"),
    ] = None
    content: Annotated[
        str | list[Part] | None,
        Meta(description="of a `message` or of `reasoning`; parts are joined by a newline"),
    ] = None
    call_id: Annotated[
        str | None, Meta(description="joins a `function_call` and its `function_call_output`")
    ] = None
    name: Annotated[str | None, Meta(description="of a `function_call`: the function")] = None
    arguments: Annotated[
        str | None, Meta(description="of a `function_call`: a JSON object as text")
    ] = None
    output: Annotated[
        str | list[Part] | None,
        Meta(description="of a `function_call_output`; parts are joined by a newline"),
    ] = None
    summary: Annotated[
        list[Part] | None, Meta(description="of `reasoning`, where that has no `content`")
    ] = None
    encrypted_content: Annotated[Any, ignored("thoughts are not encrypted here")] = None
    status: Annotated[Any, ignored(ABOUT)] = None
    phase: Annotated[Any, ignored(ABOUT)] = None
    namespace: Annotated[Any, ignored(ABOUT)] = None
    caller: Annotated[Any, ignored(ABOUT)] = None
    async_: Annotated[Any, ignored(ABOUT)] = field(default=None, name="async")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in _NEEDED[self.kind]:
            if getattr(self, name) is None:
                raise ValueError(f"Object missing required field `{name}`")

    @property
    def kind(self) -> str:
        """The item's type, where it is left out too."""
        return self.type or ("message" if self.role or self.id is None else "item_reference")


def text_of(content: str | list[Part] | None) -> str:
    """A content as one text."""
    return content if isinstance(content, str) else "\n".join(each.said for each in content or ())
