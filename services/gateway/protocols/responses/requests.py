"""The request of the Responses API; null is the same as absent."""

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from sps2.common.api.drawing import Drawing
from sps2.common.api.requests import Alternatives, CacheSalt, Positive
from sps2.common.api.template_fields import TemplateVariables
from sps2.common.api.tools import MOST_TOOLS, FunctionName
from sps2.common.api.unsupported_fields import Tolerant, ignored, only
from sps2.common.messages import Struct
from sps2.services.gateway.protocols.responses.items import COMPACTED, NO_SERVER_TOOLS, Item

LOGPROBS = "message.output_text.logprobs"
OTHER_TOOLS = (
    *("web_search", "web_search_preview", "web_search_2025_08_26", "file_search", "computer"),
    *("web_search_preview_2025_03_11", "computer_use_preview", "mcp", "code_interpreter"),
    *("image_generation", "local_shell", "shell", "custom", "apply_patch", "tool_search"),
    *("namespace", "programmatic_tool_calling"),
)
ToolType = Annotated[
    Literal["function"], Meta(extra={"unsupported": dict.fromkeys(OTHER_TOOLS, NO_SERVER_TOOLS)})
]


class Tool(Tolerant, frozen=True, kw_only=True):
    """A function that the model may call, and the client runs."""

    type: Annotated[ToolType, Meta(description="`function`")]
    name: Annotated[FunctionName, Meta(description="by which the model calls it")]
    description: Annotated[str | None, Meta(description="what it does, for the model")] = None
    parameters: Annotated[
        dict[str, Any] | None, Meta(description="JSON schema of its arguments, an object")
    ] = None
    strict: Annotated[
        bool | None,
        Meta(description="arguments always follow the schema"),
    ] = None
    defer_loading: Annotated[Any, ignored("the model is shown every function")] = None
    output_schema: Annotated[Any, ignored("chat templates have no place for it")] = None
    allowed_callers: Annotated[Any, only(["direct"], why=NO_SERVER_TOOLS)] = None
    async_: Annotated[Any, ignored("a call is answered when the client sends its result")] = field(
        default=None, name="async"
    )


class Reference(Struct, frozen=True):
    """A function of the request's tools, by its name."""

    name: str
    type: ToolType = "function"


class Choice(Struct, frozen=True, kw_only=True):
    """A `tool_choice` that names one function, which is then called, or the allowed ones."""

    type: Annotated[
        Literal["function", "allowed_tools"],
        Meta(extra={"unsupported": dict.fromkeys(OTHER_TOOLS, NO_SERVER_TOOLS)}),
    ]
    name: Annotated[str | None, Meta(description="of a `function`")] = None
    mode: Annotated[Literal["auto", "required"] | None, Meta(description="of `allowed_tools`")] = (
        None
    )
    tools: Annotated[list[Reference] | None, Meta(description="of `allowed_tools`")] = None

    def __post_init__(self) -> None:
        for name in ("name",) if self.type == "function" else ("mode", "tools"):
            if not getattr(self, name):
                raise ValueError(f"Object missing required field `{name}`")


class Format(Tolerant, frozen=True, kw_only=True, omit_defaults=True):
    """The form of the answer."""

    type: Annotated[
        Literal["text", "json_object", "json_schema"],
        Meta(description="free text, JSON, or JSON that follows a schema"),
    ]
    schema: Annotated[
        dict[str, Any] | None, Meta(description="of `json_schema`: the JSON schema")
    ] = None
    strict: Annotated[
        bool | None,
        Meta(
            description="false leaves out keywords of the schema that cannot be guaranteed, which "
            "are refused otherwise"
        ),
    ] = None
    name: Annotated[Any, ignored("a name changes nothing")] = None
    description: Annotated[Any, ignored("the input says what is wanted")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.type == "json_schema" and self.schema is None:
            raise ValueError("Object missing required field `schema`")


class TextConfig(Tolerant, frozen=True):
    """How the answer is written."""

    format: Annotated[Format | None, Meta(description="free text if absent")] = None
    verbosity: Annotated[Any, ignored("a hint to models that know it")] = None


class Reasoning(Tolerant, frozen=True):
    """How the model thinks."""

    effort: Annotated[Any, ignored("a hint to models that know it")] = None
    summary: Annotated[Any, ignored("thoughts are shown as they are, not as a summary")] = None
    generate_summary: Annotated[Any, ignored("as `summary`")] = None
    context: Annotated[Any, ignored("the chat template decides which thoughts the model sees")] = (
        None
    )
    mode: Annotated[Any, ignored("there is one mode")] = None


class StreamOptions(Tolerant, frozen=True):
    """Only meaningful with `stream`."""

    include_obfuscation: Annotated[Any, ignored("events are never padded; TLS is for that")] = None


class ResponsesRequest(Drawing, frozen=True, kw_only=True):
    """`POST /v1/responses`: OpenAI's fields, and a chat's of how tokens are drawn."""

    model: Annotated[str | None, Meta(description="a name of the served model, if given")] = None
    input: Annotated[
        str | Annotated[list[Item], Meta(min_length=1)],
        Meta(description="a turn of the user, or the items of a conversation"),
    ]
    instructions: Annotated[
        str | None, Meta(description="the system prompt; of this response alone")
    ] = None
    previous_response_id: Annotated[
        str | None, Meta(description="a stored response: its items come before `input`")
    ] = None
    store: Annotated[
        bool | None,
        Meta(description="the response is kept for a while; true if absent"),
    ] = None
    background: Annotated[
        bool | None,
        Meta(description="the answer goes on without the client; needs `store`, not `stream`"),
    ] = None
    stream: Annotated[bool | None, Meta(description="server-sent events, as tokens come")] = None
    stream_options: Annotated[StreamOptions | None, ignored("events are as they are")] = None
    max_output_tokens: Annotated[
        Positive | None,
        Meta(description="tokens of the answer, thoughts included; as `max_tokens` of a chat"),
    ] = None
    text: Annotated[TextConfig | None, Meta(description="the form of the answer")] = None
    tools: Annotated[
        Annotated[list[Tool], Meta(max_length=MOST_TOOLS)] | None,
        Meta(description="functions that the model may call"),
    ] = None
    tool_choice: Annotated[
        Literal["auto", "none", "required"] | Choice | None,
        Meta(description="`auto` if absent; an object names functions"),
    ] = None
    parallel_tool_calls: Annotated[
        bool | None, Meta(description="false: one call to an answer at most")
    ] = None
    reasoning: Annotated[Reasoning | None, Meta(description="hints; see below")] = None
    include: Annotated[
        list[str] | None,
        Meta(description=f"`{LOGPROBS}` adds log-probabilities; others are ignored"),
    ] = None
    top_logprobs: (
        Annotated[Alternatives, Meta(description=f"alternatives per token; needs `{LOGPROBS}`")]
        | None
    ) = None
    metadata: Annotated[dict[str, str] | None, Meta(description="returned with the response")] = (
        None
    )
    truncation: Annotated[
        Literal["disabled"] | None,
        Meta(
            description="`disabled`",
            extra={"unsupported": {"auto": "prompts are never cut; leave items out instead"}},
        ),
    ] = None
    cache_salt: CacheSalt = None
    chat_template_kwargs: TemplateVariables = None
    max_tool_calls: Annotated[Any, ignored("it limits tools that run at the server")] = None
    user: Annotated[Any, ignored("nothing is kept of who asks")] = None
    safety_identifier: Annotated[Any, ignored("as `user`")] = None
    client_metadata: Annotated[Any, ignored("as `user`")] = None
    service_tier: Annotated[Any, ignored("there is one tier")] = None
    access_programs: Annotated[Any, ignored("there are no such programs")] = None
    prompt_cache_key: Annotated[Any, ignored("prefixes are found by themselves")] = None
    prompt_cache_retention: Annotated[Any, ignored("as `prompt_cache_key`")] = None
    prompt_cache_options: Annotated[Any, ignored("as `prompt_cache_key`")] = None
    image: Annotated[Any, ignored("it is about images, which are refused in `input`")] = None
    background_options: Annotated[Any, ignored("a response begins as soon as it can")] = None
    conversation: Annotated[Any, only(why="send `previous_response_id`")] = None
    context_management: Annotated[list[Any] | None, only([], why=COMPACTED)] = None
    prompt: Annotated[Any, only(why="there are no stored prompts; send `instructions`")] = None
    moderation: Annotated[Any, only(why="nothing is moderated here")] = None
