"""The requests of the Messages API; null is the same as absent."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from sps2.common.api.conversation import TEXT_ALONE
from sps2.common.api.drawing import StopString
from sps2.common.api.requests import Positive
from sps2.common.api.unsupported_fields import Tolerant, ignored, only
from sps2.common.messages import Struct

NO_SERVER_TOOLS = "tools run at the client here: give `name`, `description` and `input_schema`"
MOST_TOOLS = 1024
"""Maximum tools of a request; agents have hundreds."""
CACHED = "prefixes are cached automatically"
ABOUT = "about the block, not part of it"
OTHER_MEDIA = ("image", "document", "search_result", "container_upload", "browser_state")
SERVER_BLOCKS = (
    *("server_tool_use", "web_search_tool_result", "web_fetch_tool_result"),
    *("code_execution_tool_result", "bash_code_execution_tool_result"),
    *("text_editor_code_execution_tool_result", "tool_search_tool_result", "tool_reference"),
    *("mcp_tool_use", "mcp_tool_result", "mcp_tool_listing", "advisor_tool_result"),
    *("tool_addition", "tool_removal"),
)
NO_SUMMARIES = "conversations are not summarised here"
NO_BLOCKS = {
    "unsupported": dict.fromkeys(OTHER_MEDIA, TEXT_ALONE)
    | dict.fromkeys(SERVER_BLOCKS, NO_SERVER_TOOLS)
    | {"compaction": NO_SUMMARIES, "fallback": "one model is served"}
}

Cached = Annotated[Any, ignored(CACHED)]
Nothing = Annotated[Any, only(why=TEXT_ALONE)]
ServerTool = Annotated[Any, only(why=NO_SERVER_TOOLS)]


class TextBlock(Tolerant, frozen=True, kw_only=True):
    """A block of a system prompt or of a tool's result."""

    type: Annotated[Literal["text"], Meta(extra=NO_BLOCKS)]
    text: Annotated[str | None, Meta(description="the text")] = None
    cache_control: Cached = None
    citations: Annotated[Any, ignored(ABOUT)] = None
    source: Nothing = None
    title: Nothing = None
    content: Nothing = None
    tool_name: Nothing = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text is None:
            raise ValueError("Object missing required field `text`")


_NEEDED = {
    "text": ("text",),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id",),
    "thinking": ("thinking",),
    "redacted_thinking": (),
}


class Block(Tolerant, frozen=True, kw_only=True):
    """A block of a message."""

    type: Annotated[
        Literal["text", "tool_use", "tool_result", "thinking", "redacted_thinking"],
        Meta(extra=NO_BLOCKS),
    ]
    text: Annotated[str | None, Meta(description="of `text`")] = None
    id: Annotated[str | None, Meta(description="of `tool_use`: names the call")] = None
    name: Annotated[str | None, Meta(description="of `tool_use`: the tool")] = None
    input: Annotated[dict[str, Any] | None, Meta(description="of `tool_use`: its arguments")] = None
    tool_use_id: Annotated[
        str | None, Meta(description="of `tool_result`: the call whose result it is")
    ] = None
    content: Annotated[
        str | list[TextBlock] | None,
        Meta(description="of `tool_result`: the result; blocks are joined by a newline"),
    ] = None
    is_error: Annotated[
        bool | None, Meta(description="of `tool_result`: the model reads `Error: ` before it")
    ] = None
    thinking: Annotated[
        str | None,
        Meta(description="of `thinking`: shown to the model if its chat template does so"),
    ] = None
    signature: Annotated[Any, ignored("thoughts are not signed")] = None
    data: Annotated[Any, ignored("of `redacted_thinking`, which cannot be read")] = None
    cache_control: Cached = None
    citations: Annotated[Any, ignored(ABOUT)] = None
    caller: Annotated[Any, ignored(ABOUT)] = None
    toolset_name: Annotated[Any, ignored(ABOUT)] = None
    source: Nothing = None
    title: Nothing = None
    context: Nothing = None
    file_id: Nothing = None
    server_name: Nothing = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in _NEEDED[self.type]:
            if getattr(self, name) is None:
                raise ValueError(f"Object missing required field `{name}`")


class Turn(Struct, frozen=True):
    """One message of the conversation."""

    role: Annotated[Literal["user", "assistant", "system"], Meta(description="who speaks")]
    content: Annotated[str | list[Block], Meta(description="a text, or blocks")]


class Tool(Tolerant, frozen=True, kw_only=True):
    """A tool that the model may use, and the client runs."""

    name: Annotated[str, Meta(min_length=1, description="by which the model calls it")]
    type: Annotated[str | None, only("custom", why=NO_SERVER_TOOLS)] = None
    description: Annotated[str | None, Meta(description="what it does, for the model")] = None
    input_schema: Annotated[
        dict[str, Any] | None, Meta(description="JSON schema of its input, an object")
    ] = None
    strict: Annotated[bool | None, Meta(description="the input always follows the schema")] = None
    cache_control: Cached = None
    allowed_callers: Annotated[Any, only(["direct"], why=NO_SERVER_TOOLS)] = None
    defer_loading: Annotated[Any, ignored("the model is shown every tool")] = None
    eager_input_streaming: Annotated[Any, ignored("inputs are always streamed as they come")] = None
    input_examples: Annotated[Any, ignored("chat templates have no place for them")] = None
    max_characters: ServerTool = None
    max_content_tokens: ServerTool = None
    max_uses: ServerTool = None
    allowed_domains: ServerTool = None
    blocked_domains: ServerTool = None
    citations: ServerTool = None
    response_inclusion: ServerTool = None
    url_filter: ServerTool = None
    url_sources: ServerTool = None
    use_cache: ServerTool = None
    user_location: ServerTool = None
    display_width_px: ServerTool = None
    display_height_px: ServerTool = None
    display_number: ServerTool = None
    enable_zoom: ServerTool = None
    mcp_server_name: ServerTool = None
    configs: ServerTool = None
    default_config: ServerTool = None
    model: ServerTool = None
    caching: ServerTool = None
    max_tokens: ServerTool = None
    tools: ServerTool = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input_schema is None:
            raise ValueError("Object missing required field `input_schema`")


class ToolChoice(Struct, frozen=True):
    """Whether the model must use a tool."""

    type: Annotated[
        Literal["auto", "any", "tool", "none"],
        Meta(description="`any`: it uses at least one; `tool`: that of `name`"),
    ]
    name: Annotated[str | None, Meta(description="of a tool of the request")] = None
    disable_parallel_tool_use: Annotated[
        bool | None, Meta(description="one call to an answer at most")
    ] = None

    def __post_init__(self) -> None:
        if self.type == "tool" and self.name is None:
            raise ValueError("Object missing required field `name`")


class Thinking(Tolerant, frozen=True):
    """Whether the model thinks before it answers, if its chat template leaves that open."""

    type: Annotated[
        Literal["enabled", "disabled", "adaptive", "between_tools"],
        Meta(description="`adaptive` and `between_tools` leave it to the chat template"),
    ]
    budget_tokens: Annotated[int | None, ignored("thoughts count towards `max_tokens`")] = None
    display: Annotated[Any, ignored("thoughts are shown as they are")] = None


class OutputFormat(Struct, frozen=True):
    """The form of the answer."""

    type: Annotated[Literal["json_schema"], Meta(description="the answer is JSON")]
    schema: Annotated[dict[str, Any], Meta(description="the JSON schema that it follows")]


class OutputConfig(Tolerant, frozen=True):
    """How the model answers."""

    format: Annotated[OutputFormat | None, Meta(description="free text if absent")] = None
    effort: Annotated[Any, ignored("a hint to models that know it")] = None
    task_budget: Annotated[Any, ignored("a hint to models that know it")] = None


class Conversation(Tolerant, frozen=True, kw_only=True):
    """What both requests have."""

    model: Annotated[str | None, Meta(description="a name of the served model, if given")] = None
    messages: Annotated[list[Turn], Meta(min_length=1, description="the conversation")]
    system: Annotated[
        str | list[TextBlock] | None,
        Meta(description="the system prompt; blocks are joined by a newline"),
    ] = None
    tools: Annotated[
        Annotated[list[Tool], Meta(max_length=MOST_TOOLS)] | None,
        Meta(description="tools that the model may use"),
    ] = None
    tool_choice: Annotated[ToolChoice | None, Meta(description="`auto` if absent")] = None
    thinking: Annotated[
        Thinking | None, Meta(description="as the chat template has it, if absent")
    ] = None
    output_config: Annotated[OutputConfig | None, Meta(description="the form of the answer")] = None
    cache_control: Cached = None
    context_management: Annotated[Any, ignored("the conversation is read as it is sent")] = None
    betas: Annotated[Any, ignored("there are no previews here")] = None
    billing_policy: Annotated[Any, ignored("nothing is billed")] = None
    speed: Annotated[Any, ignored("there is one speed")] = None
    user_profile_id: Annotated[Any, ignored("nothing is kept of who asks")] = None
    workspace_id: Annotated[Any, ignored("nothing is kept of who asks")] = None
    mcp_servers: Annotated[list[Any] | None, only([], why=NO_SERVER_TOOLS)] = None
    compaction: Annotated[Any, only(why=NO_SUMMARIES)] = None


class CountTokensRequest(Conversation, frozen=True, kw_only=True):
    """`POST /v1/messages/count_tokens`."""


class MessagesRequest(Conversation, frozen=True, kw_only=True):
    """`POST /v1/messages`."""

    max_tokens: Annotated[Positive, Meta(description="tokens of the answer, thoughts included")]
    stop_sequences: Annotated[
        Annotated[list[StopString], Meta(max_length=32)] | None,
        Meta(description="each ends the answer, which then lacks it"),
    ] = None
    stream: Annotated[bool | None, Meta(description="server-sent events, as tokens come")] = None
    temperature: Annotated[float, Meta(ge=0, le=2, description="0 is greedy")] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1, description="0 is greedy")] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1, description="-1 and 0 are off")] | None = None
    metadata: Annotated[Any, ignored("nothing is kept of who asks")] = None
    service_tier: Annotated[Any, ignored("there is one tier")] = None
    inference_geo: Annotated[Any, ignored("the cluster is where it is")] = None
    diagnostics: Annotated[Any, ignored("`usage` shows what was cached")] = None
    fallbacks: Annotated[Any, ignored("one model is served")] = None
    fallback_credit_token: Annotated[Any, ignored("nothing is billed")] = None
    container: Annotated[Any, only(why=NO_SERVER_TOOLS)] = None
    thread: Annotated[Any, only(why="conversations are not kept here: send all `messages`")] = None
