"""Functions that a model may call: as requests describe them, and as answers call them."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from sps2.common.api.unsupported_fields import Tolerant, ignored
from sps2.common.messages import Struct

MOST_TOOLS = 128
"""Maximum tools of a request, as OpenAI's."""
FUNCTIONS_ALONE = "tools are functions here; describe it as one, with `parameters`"

ToolType = Annotated[Literal["function"], Meta(extra={"unsupported": {"custom": FUNCTIONS_ALONE}})]
FunctionName = Annotated[
    str,
    Meta(
        pattern="^[a-zA-Z0-9_-]{1,64}$",
        extra={"form": "1 to 64 letters, digits, `_` and `-`"},
    ),
]


class FunctionCall(Tolerant, frozen=True):
    """What a call calls."""

    name: Annotated[str, Meta(description="the function's name")]
    arguments: Annotated[str, Meta(description="its arguments: a JSON object as text")]
    parsed_arguments: Annotated[Any, ignored("what a client made of the arguments")] = UNSET


class ToolCall(Tolerant, frozen=True):
    """A call of an assistant's turn."""

    id: Annotated[str, Meta(description="names the call; its result has it as `tool_call_id`")]
    function: Annotated[FunctionCall, Meta(description="what it calls")]
    type: Annotated[ToolType, Meta(description="`function` if absent")] = "function"
    index: Annotated[
        int | UnsetType | None, ignored("calls are in the order in which they are given")
    ] = UNSET


class FunctionDelta(Struct, frozen=True):
    """A part of a call: its name comes whole, its arguments in parts."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(Struct, frozen=True):
    """A part of call number `index` of an answer; the first part has its id, type and name."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta = FunctionDelta()


class Function(Tolerant, frozen=True):
    """A function that the model may call."""

    name: Annotated[FunctionName, Meta(description="the name by which the model calls it")]
    description: Annotated[str | None, Meta(description="what it does, for the model")] = None
    parameters: Annotated[
        dict[str, Any] | None,
        Meta(description="JSON schema of its arguments, an object; none if absent"),
    ] = None
    strict: Annotated[
        bool | None,
        Meta(description="arguments follow the schema exactly"),
    ] = None


class Tool(Tolerant, frozen=True, kw_only=True):
    """A tool of a request."""

    type: Annotated[ToolType, Meta(description="`function` if absent")] = "function"
    function: Annotated[Function, Meta(description="what the model is told of it")]
    cache_control: Annotated[Any, ignored("prefixes are cached automatically")] = None


class FunctionReference(Struct, frozen=True):
    """A function of the request's tools, by its name."""

    name: str


class ToolReference(Struct, frozen=True, kw_only=True):
    """A tool of the request, by the name of its function."""

    type: ToolType = "function"
    function: FunctionReference


class AllowedTools(Struct, frozen=True):
    """Those of the request's tools that this answer may call."""

    mode: Annotated[
        Literal["auto", "required"], Meta(description="as the `tool_choice` of that name")
    ]
    tools: Annotated[list[ToolReference], Meta(min_length=1, description="the allowed ones")]


ChoiceType = Annotated[
    Literal["function", "allowed_tools"], Meta(extra={"unsupported": {"custom": FUNCTIONS_ALONE}})
]


class NamedTool(Struct, frozen=True, kw_only=True):
    """A `tool_choice` that names one function, which is then called, or the allowed ones."""

    type: Annotated[ChoiceType, Meta(description="`function`, or `allowed_tools`")] = "function"
    function: Annotated[
        FunctionReference | None, Meta(description="the function that is called")
    ] = None
    allowed_tools: Annotated[
        AllowedTools | None, Meta(description="the functions that may be called")
    ] = None

    def __post_init__(self) -> None:
        if getattr(self, self.type) is None:
            raise ValueError(f"Object missing required field `{self.type}`")


ToolChoice = Literal["auto", "none", "required"] | NamedTool
Tools = Annotated[
    list[Tool], Meta(max_length=MOST_TOOLS, description="functions that the model may call")
]
