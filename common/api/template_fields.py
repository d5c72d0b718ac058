"""Fields of a chat about its template: what the template is given, and how the prompt ends."""

from typing import Annotated, Any

from msgspec import Meta

from sps2.common.api.unsupported_fields import only

AddGenerationPrompt = Annotated[
    bool | None,
    Meta(description="true if absent: the prompt ends with the beginning of an answer"),
]
ContinueFinalMessage = Annotated[
    bool | None,
    Meta(
        description="the prompt ends within the last message, in which the answer goes on; "
        "excludes `add_generation_prompt`"
    ),
]
TemplateVariables = Annotated[
    dict[str, Any] | None,
    Meta(description="variables of the chat template, such as `enable_thinking`; 64 KiB at most"),
]
Documents = Annotated[
    list[dict[str, Any]] | None,
    Meta(description="for chat templates that know them, as `title` and `text`"),
]
OtherTemplate = Annotated[Any, only(why="prompts are made by the model's own chat template")]
