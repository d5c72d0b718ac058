"""The public API: OpenAI's requests and answers, as HTTP, the SDK and the gateway share them.

Unknown fields are refused, never ignored. On the bus a completion is always a stream of chunks
(`sps2.common.collect` folds them); its last chunk has no choices and carries the usage. Nor have
those about progress, which come before all others.
"""

import re
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sps2.common.errors import Invalid
from sps2.common.messages import (
    ExactMethod,
    FinishReason,
    Request,
    Setting,
    Stream,
    Struct,
    Wire,
)
from sps2.common.progress import ChunkExtension
from sps2.common.usage import Usage

T = TypeVar("T")

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Prompt = str | list[str | TokenId | list[TokenId]]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
Alternatives = Annotated[int, Meta(ge=0, le=20)]
TRACEPARENT = "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
ChatRole = Literal["system", "developer", "user", "assistant", "tool"]


# --- requests ---


class StreamOptions(Struct, frozen=True):
    """Only meaningful with `stream`."""

    include_usage: bool = False
    """One more chunk at the end: no choices, but the usage."""


class Extension(Struct, frozen=True):
    """What SPS2 takes beyond OpenAI's parameters."""

    sp_degree: (
        Annotated[
            int,
            Meta(ge=1, le=4096, description="prefill shards to use; the policy chooses if absent"),
        ]
        | None
    ) = None
    attention: (
        Annotated[
            Setting,
            Meta(description="exact, or how much CSA may leave out; the cluster's if absent"),
        ]
        | None
    ) = None
    method: (
        Annotated[
            ExactMethod,
            Meta(description="how the shards share exact attention; predicted if absent"),
        ]
        | None
    ) = None
    traceparent: (
        Annotated[
            str,
            Meta(
                pattern=TRACEPARENT,
                description="W3C trace context of the caller; over HTTP the header does as well",
            ),
        ]
        | None
    ) = None
    wire: Annotated[Wire, Meta(description="of keys and values between prefill shards")] | None = (
        None
    )
    pipelined: (
        Annotated[bool, Meta(description="false does transfers and arithmetic by turns")] | None
    ) = None
    progress: (
        Annotated[bool, Meta(description="chunks about the prefill as it goes on; needs `stream`")]
        | None
    ) = None


class Parameters(Struct, frozen=True, kw_only=True):
    """What both kinds of completion take; null is the same as absent."""

    model: str | None = None
    """Must be the served model if given."""
    temperature: Annotated[float, Meta(ge=0, le=2, description="0 is greedy")] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1, description="-1 and 0 are off")] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1, description="0 is off")] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=4)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    n: Positive | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100, description="1 is off")] | None = None
    logit_bias: (
        Annotated[dict[str, Bias], Meta(max_length=1024, description="by token id, as a string")]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    user: Annotated[str, Meta(description="accepted and not used")] | None = None
    cache_salt: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=1024,
                description="cached KV is shared only with requests of the same salt",
            ),
        ]
        | None
    ) = None
    sps2: Extension | None = None


class CompletionRequest(Parameters, Stream["CompletionChunk"], frozen=True, kw_only=True):
    """`POST /v1/completions`."""

    prompt: Annotated[
        Prompt, Meta(description="a string, token ids, or a list of strings or of token ids")
    ]
    max_tokens: (
        Annotated[int, Meta(ge=0, le=2**31 - 1, description="16 if absent; 0 needs `echo`")] | None
    ) = None
    logprobs: Annotated[int, Meta(ge=0, le=20, description="alternatives per token")] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Meta(description="accepted where it equals `n`")] | None = None
    suffix: Annotated[str, Meta(description="not supported")] | None = None


class TextPart(Struct, frozen=True):
    """A part of a message's content; only text is supported."""

    text: str
    type: Literal["text"] = "text"


class Message(Struct, frozen=True):
    """One turn of a conversation."""

    role: ChatRole
    content: str | list[TextPart]
    name: Annotated[str, Meta(description="accepted and not used")] | None = None


class ChatRequest(Parameters, Stream["ChatChunk"], frozen=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Positive | None = None
    """Absent, the answer may fill the rest of the context."""
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None


class Tokenize(Request["Tokens"], frozen=True, kw_only=True):
    """`POST /tokenize`: of a text or of a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    add_special_tokens: bool = True


class Detokenize(Request["Text"], frozen=True, kw_only=True):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[TokenId]


class ListModels(Request["Models"], frozen=True):
    """`GET /v1/models`."""


# --- answers ---


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


class ChatDelta(Struct, frozen=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatDelta]
    usage: Usage | UnsetType | None = UNSET
    sps2: ChunkExtension | UnsetType = UNSET


class Answer(Struct, frozen=True):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(Struct, frozen=True):
    index: int
    message: Answer
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class Chat(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class Tokens(Struct, frozen=True):
    tokens: list[int]
    count: int
    max_model_len: int


class Text(Struct, frozen=True):
    prompt: str


class Model(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "sps2"
    max_model_len: int


class Models(Struct, frozen=True):
    data: list[Model]
    object: Literal["list"] = "list"


class Version(Struct, frozen=True):
    version: str


class Problem(Struct, frozen=True):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(Struct, frozen=True):
    error: Problem


# --- checks ---


def parse(body: bytes, kind: type[T]) -> T:
    """A request from JSON.

    Raises:
        Invalid: not UTF-8, not JSON, or not a `kind`; the field at fault is named.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise invalid(error) from error
    except UnicodeDecodeError as error:
        raise Invalid(
            f"the body is not valid UTF-8: {error.reason}", None, "invalid_utf8"
        ) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise Invalid(f"the body is not valid JSON: {error}", None, "invalid_json") from error


def check(fields: dict[str, object], kind: type[T]) -> T:
    """A request from Python values. Raises Invalid as `parse` does."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise invalid(error) from error


def invalid(error: msgspec.ValidationError) -> Invalid:
    """The error for the sender, naming the field at fault."""
    text = str(error)
    what, _, where = text.partition(" - at ")
    field = where.strip("`$.").removesuffix("[...]")
    if unknown := re.search(r"unknown field `(.*)`$", what):
        field = ".".join(filter(None, (field, unknown[1])))
        return Invalid(f"unknown field `{field}`", field, "unknown_field")
    if missing := re.search(r"missing required field `(.*)`$", what):
        field = ".".join(filter(None, (field, missing[1])))
        return Invalid(f"`{field}` is required", field, "missing_field")
    return Invalid(f"`{field}`: {what}" if field else what, field or None, "invalid_value")
