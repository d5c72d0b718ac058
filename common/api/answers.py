"""The answers of the API, whole and in chunks."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sps2.common.api.progress import ChunkExtension
from sps2.common.api.prompt_answers import PromptLogprobs, PromptTokenIds, TokenIds
from sps2.common.api.tools import ToolCall, ToolCallDelta
from sps2.common.api.usage import Usage
from sps2.common.messages import FinishReason, Struct

ChatFinish = Literal["stop", "length", "tool_calls"]


class CompletionLogprobs(Struct, frozen=True):
    """Parallel lists; `text_offset` counts characters from the start of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]

    def __add__(self, other: "CompletionLogprobs") -> "CompletionLogprobs":
        return CompletionLogprobs(
            self.tokens + other.tokens,
            self.token_logprobs + other.token_logprobs,
            self.top_logprobs + other.top_logprobs,
            self.text_offset + other.text_offset,
        )


class CompletionChoice(Struct, frozen=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    token_ids: TokenIds = UNSET
    prompt_token_ids: PromptTokenIds = UNSET
    prompt_logprobs: PromptLogprobs = UNSET
    stop_reason: str | UnsetType = UNSET
    """The stop string that ended the choice, if one did."""


class CompletionChunk(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    sps2: ChunkExtension | UnsetType = UNSET


class Completion(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class TopLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    content: list[ChatLogprob]
    refusal: None = None


class Delta(Struct, frozen=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatDelta(Struct, frozen=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinish | None = None
    stop_reason: str | UnsetType = UNSET
    """The stop string that ended the choice, if one did."""
    token_ids: TokenIds = UNSET


class ChatChunk(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatDelta]
    usage: Usage | UnsetType | None = UNSET
    sps2: ChunkExtension | UnsetType = UNSET
    prompt_token_ids: PromptTokenIds = UNSET
    prompt_logprobs: PromptLogprobs = UNSET


class Answer(Struct, frozen=True):
    content: str | None
    """None if the answer is calls alone."""
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    """What the model thought before it answered, if it did."""
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    index: int
    message: Answer
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinish | None = None
    stop_reason: str | UnsetType = UNSET
    """The stop string that ended the choice, if one did."""
    token_ids: TokenIds = UNSET


class Chat(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: PromptTokenIds = UNSET
    prompt_logprobs: PromptLogprobs = UNSET


class Estimate(Struct, frozen=True, kw_only=True):
    """The answer of `/v1/estimate`: what is predicted of a request that is not run."""

    prompt_tokens: Annotated[int, Meta(description="tokens of the prompt")]
    cached_tokens: Annotated[int, Meta(description="how many of them would not be computed")]
    ttft_ms: Annotated[
        float | None, Meta(description="ms to the first token; null if there is no room now")
    ]
    queue_ms: Annotated[
        float, Meta(description="of these, ms in which other requests are computed first")
    ]
    tbt_ms: Annotated[
        float | None, Meta(description="ms between tokens; null before the first answer")
    ]
    sp_degree: Annotated[int, Meta(description="prefill shards that would share the prompt")]
    method: Annotated[str, Meta(description="how they would share attention; see `usage.sps2`")]
    exchange_bytes: Annotated[
        int, Meta(description="bytes between prefill shards, and with shards that have cached KV")
    ]
    waits_for: Annotated[
        str, Meta(description="what it would wait for, in words; empty if there is room")
    ]


class Tokens(Struct, frozen=True):
    """The answer of `/tokenize`."""

    tokens: Annotated[list[int], Meta(description="the token ids")]
    count: Annotated[int, Meta(description="how many they are")]
    max_model_len: Annotated[int, Meta(description="tokens of prompt and answer together, at most")]
    token_strs: Annotated[
        list[str] | UnsetType,
        Meta(
            description="the text of each, with `return_token_strs`; a part of a character is "
            "shown as U+FFFD"
        ),
    ] = UNSET


class Text(Struct, frozen=True):
    """The answer of `/detokenize`."""

    prompt: Annotated[str, Meta(description="the text, special tokens as they are spelled")]


class Model(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "sps2"
    root: str = ""
    """The name of the model in answers: `id`, or the name that `id` is an alias of."""
    max_model_len: int
    sampling_defaults: dict[str, float] = msgspec.field(default_factory=dict)
    """Defaults that the model recommends for requests that set none; the rest are OpenAI's."""


class Models(Struct, frozen=True):
    data: list[Model]
    object: Literal["list"] = "list"


class Version(Struct, frozen=True):
    version: str


class Ready(Struct, frozen=True):
    """The cluster accepts requests."""

    missing: str = ""
    """What is still missing, in words, for example "1 of 2 decode shards"; empty if nothing is."""


class Problem(Struct, frozen=True):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(Struct, frozen=True):
    error: Problem
