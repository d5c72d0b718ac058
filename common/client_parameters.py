"""The parameters of the SDK's calls, as types."""

from collections.abc import Sequence
from typing import Any, TypedDict

from sps2.common import api


class Turn(TypedDict):
    """A message of a conversation as a dictionary."""

    role: api.ChatRole
    content: str


Messages = str | Sequence[Turn | api.Message | api.Answer]
"""A conversation; a string is one turn of the user. Answers may be passed as they came."""
Prompt = str | Sequence[str | int | Sequence[int]]
"""A text, token ids, or several of either."""


class Parameters(TypedDict, total=False):
    """Parameters of both kinds of completion; `sps2.common.api` says what they mean."""

    model: str | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    stop: str | list[str] | None
    stop_token_ids: list[int] | None
    n: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: dict[str, float] | None
    ignore_eos: bool | None
    min_tokens: int | None
    allowed_token_ids: list[int] | None
    bad_words: list[str] | None
    prompt_logprobs: int | None
    truncate_prompt_tokens: int | None
    skip_special_tokens: bool | None
    include_stop_str_in_output: bool | None
    return_token_ids: bool | None
    return_tokens_as_token_ids: bool | None
    response_format: dict[str, Any] | api.ResponseFormat | None
    structured_outputs: dict[str, Any] | api.StructuredOutputs | None
    cache_salt: str | None
    user: str | None
    sps2: api.Extension | None


class CompletionParameters(Parameters, total=False):
    """Parameters of `complete`."""

    max_tokens: int | None
    logprobs: int | None
    echo: bool | None
    add_special_tokens: bool | None


class ChatParameters(Parameters, total=False):
    """Parameters of `chat`."""

    max_tokens: int | None
    max_completion_tokens: int | None
    logprobs: bool | None
    top_logprobs: int | None
    tools: Sequence[api.Tool | dict[str, Any]] | None
    tool_choice: str | dict[str, Any] | api.NamedTool | None
    parallel_tool_calls: bool | None
    include_reasoning: bool | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    chat_template_kwargs: dict[str, Any] | None
    documents: list[dict[str, Any]] | None
