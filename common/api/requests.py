"""The requests of the API; null is the same as absent."""

from typing import Annotated, Any

from msgspec import Meta

from sps2.common.api.answers import ChatChunk, CompletionChunk, Estimate, Models, Text, Tokens
from sps2.common.api.conversation import TEXT_ALONE, Message
from sps2.common.api.drawing import TokenId
from sps2.common.api.template_fields import (
    AddGenerationPrompt,
    ContinueFinalMessage,
    Documents,
    OtherTemplate,
    TemplateVariables,
)
from sps2.common.api.token_fields import TokenFields
from sps2.common.api.tools import ToolChoice, Tools
from sps2.common.api.unsupported_fields import Tolerant, ignored, only
from sps2.common.messages import ExactMethod, KvTransferDtype, Request, Setting, Stream, Struct

Prompt = str | list[str | TokenId | list[TokenId]]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Alternatives = Annotated[int, Meta(ge=0, le=20)]
CacheSalt = Annotated[
    Annotated[str, Meta(min_length=1, max_length=1024)] | None,
    Meta(description="cached KV is shared only with requests of the same salt"),
]
TRACEPARENT = "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"

WHOLE_TURNS = "an answer has no part of its prompt"


class StreamOptions(Struct, frozen=True):
    """Only meaningful with `stream`."""

    include_usage: Annotated[
        bool | None, Meta(description="one more chunk at the end: no choices, but the usage")
    ] = None
    continuous_usage_stats: Annotated[
        bool | None, Meta(description="with `include_usage`, every chunk has the usage so far")
    ] = None
    include_obfuscation: Annotated[
        bool | None, ignored("chunks are never padded; TLS is for that")
    ] = None


class Extension(Struct, frozen=True):
    """SPS2's own parameters, beside OpenAI's."""

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
                extra={
                    "form": "a W3C traceparent (`00-`, then 32, 16 and 2 hexadecimal digits with "
                    "`-` between them)"
                },
            ),
        ]
        | None
    ) = None
    kv_transfer_dtype: (
        Annotated[
            KvTransferDtype,
            Meta(description="type of keys and values between prefill shards; auto: the model's"),
        ]
        | None
    ) = None
    pipelined: (
        Annotated[bool, Meta(description="false disables the overlap of transfers and compute")]
        | None
    ) = None
    lossless: (
        Annotated[
            bool,
            Meta(
                description="whether bfloat16 tensors are packed losslessly on their way; the "
                "cluster's `sharing.lossless` if absent"
            ),
        ]
        | None
    ) = None
    priority: (
        Annotated[
            int,
            Meta(
                ge=-8,
                le=8,
                description="the larger, the sooner: requests with a smaller one wait and pause; 0 "
                "if absent",
            ),
        ]
        | None
    ) = None
    max_ttft_ms: (
        Annotated[
            float,
            Meta(
                gt=0,
                le=1e9,
                description="refused (429) if the first token is predicted to come later than this",
            ),
        ]
        | None
    ) = None
    cut_max_tokens: (
        Annotated[
            bool,
            Meta(
                description="true: `max_tokens` is cut to what the context leaves beside the "
                "prompt; otherwise such a request is refused"
            ),
        ]
        | None
    ) = None
    progress: (
        Annotated[bool, Meta(description="chunks about the prefill as it goes on; needs `stream`")]
        | None
    ) = None


class Parameters(TokenFields, frozen=True, kw_only=True, omit_defaults=True):
    """Parameters of both kinds of completion; null is the same as absent."""

    model: Annotated[str | None, Meta(description="a name of the served model, if given")] = None
    n: (
        Annotated[
            Positive,
            Meta(
                description="answers to each prompt: at most `gateway.max_choices` (16 unless "
                "configured), and to all prompts together `gateway.max_requests` (512)",
                extra={"form": "a whole number of at least 1"},
            ),
        ]
        | None
    ) = None
    stream: Annotated[bool | None, Meta(description="server-sent events, as tokens come")] = None
    stream_options: Annotated[StreamOptions | None, Meta(description="needs `stream`")] = None
    cache_salt: CacheSalt = None
    sps2: Annotated[Extension | None, Meta(description="SPS2's own parameters, below")] = None


class CompletionRequest(Parameters, Stream[CompletionChunk], frozen=True, kw_only=True):
    """`POST /v1/completions`."""

    prompt: Annotated[
        Prompt, Meta(description="what is continued; a list of token ids is one prompt")
    ]
    max_tokens: (
        Annotated[int, Meta(ge=0, le=2**31 - 1, description="16 if absent; 0 needs `echo`")] | None
    ) = None
    logprobs: Annotated[int, Meta(ge=0, le=20, description="alternatives per token")] | None = None
    echo: Annotated[bool | None, Meta(description="the prompt before its answer")] = None
    best_of: Annotated[int, Meta(description="1, or as many as `n`: none are dropped")] | None = (
        None
    )
    suffix: Annotated[str | None, only("", why="text is only continued")] = None
    prompt_embeds: Annotated[Any, only(why="prompts are text or token ids here")] = None
    add_special_tokens: Annotated[
        bool | None,
        Meta(
            description="add the model's special tokens around a text, e.g. its BOS: true if absent"
        ),
    ] = None


class ChatParameters(Parameters, frozen=True, kw_only=True, omit_defaults=True):
    """Parameters of chats alone, and of their estimates."""

    tools: Tools | None = None
    tool_choice: Annotated[
        ToolChoice | None,
        Meta(
            description="`auto`: the model decides, the default where there are tools; `none`: no "
            "calls; `required`: at least one; a named function: a call of it"
        ),
    ] = None
    parallel_tool_calls: Annotated[
        bool | None, Meta(description="false: one call to an answer at most")
    ] = None
    include_reasoning: Annotated[
        bool | None, Meta(description="false leaves out what the model thinks")
    ] = None
    add_generation_prompt: AddGenerationPrompt = None
    continue_final_message: ContinueFinalMessage = None
    chat_template_kwargs: TemplateVariables = None
    documents: Documents = None
    chat_template: OtherTemplate = None


class ChatRequest(ChatParameters, Stream[ChatChunk], frozen=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1, description="the conversation")]
    max_tokens: (
        Annotated[
            Positive,
            Meta(
                description="if absent, `gateway.default_max_tokens`, or without that as many as "
                "the context and a KV pool allow"
            ),
        ]
        | None
    ) = None
    max_completion_tokens: (
        Annotated[Positive, Meta(description="as `max_tokens`, and decides where both are given")]
        | None
    ) = None
    logprobs: Annotated[bool | None, Meta(description="of each token of the answer")] = None
    top_logprobs: (
        Annotated[Alternatives, Meta(description="alternatives per token; needs `logprobs`")] | None
    ) = None
    best_of: Annotated[int | None, only(1, why="as many answers are drawn as `n`")] = None
    echo: Annotated[bool | None, only(False, why=WHOLE_TURNS)] = None
    add_special_tokens: Annotated[
        bool | None, only(False, why="the chat template has the model's special tokens")
    ] = None


class EstimateRequest(ChatParameters, Request[Estimate], frozen=True, kw_only=True):
    """`POST /v1/estimate`: the body of a completion or of a chat."""

    prompt: Annotated[
        Prompt | None, Meta(description="of a completion; one prompt. This, or `messages`")
    ] = None
    messages: Annotated[
        Annotated[list[Message], Meta(min_length=1)] | None, Meta(description="of a chat")
    ] = None
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1, description="as there")] | None = None
    max_completion_tokens: Annotated[Positive, Meta(description="as there")] | None = None
    logprobs: Annotated[bool | int | None, Meta(description="as there")] = None
    top_logprobs: Annotated[Alternatives, Meta(description="as there")] | None = None
    echo: Annotated[bool | None, Meta(description="as there")] = None
    best_of: Annotated[int, Meta(description="as there")] | None = None
    add_special_tokens: Annotated[bool | None, Meta(description="as there")] = None


class Tokenize(Tolerant, Request[Tokens], frozen=True, kw_only=True, omit_defaults=True):
    """`POST /tokenize`: of a text or of a conversation."""

    model: Annotated[str | None, Meta(description="a name of the served model, if given")] = None
    prompt: Annotated[str | None, Meta(description="this, or `messages`")] = None
    messages: Annotated[
        Annotated[list[Message], Meta(min_length=1)] | None,
        Meta(description="a conversation, as in `/v1/chat/completions`"),
    ] = None
    add_special_tokens: Annotated[
        bool | None,
        Meta(
            description="add the model's special tokens around a text, for example its BOS: true "
            "if absent; of a conversation only false, since its chat template has them"
        ),
    ] = None
    add_generation_prompt: AddGenerationPrompt = None
    continue_final_message: ContinueFinalMessage = None
    chat_template_kwargs: TemplateVariables = None
    documents: Documents = None
    chat_template: OtherTemplate = None
    return_token_strs: Annotated[bool | None, Meta(description="the answer has `token_strs`")] = (
        None
    )
    mm_processor_kwargs: Annotated[Any, only({}, why=TEXT_ALONE)] = None
    tools: Annotated[
        Tools | None, Meta(description="with `messages`: as in `/v1/chat/completions`")
    ] = None


class Detokenize(Request[Text], frozen=True, kw_only=True):
    """`POST /detokenize`."""

    model: Annotated[str | None, Meta(description="a name of the served model, if given")] = None
    tokens: Annotated[list[TokenId], Meta(description="ids that the model has")]


class ListModels(Request[Models], frozen=True):
    """`GET /v1/models`."""
