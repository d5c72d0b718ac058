"""The requests of the API; null is the same as absent."""

from typing import Annotated, Any

from msgspec import Meta

from sps2.common.api.answers import ChatChunk, CompletionChunk, Estimate, Models, Text, Tokens
from sps2.common.api.conversation import NO_FUNCTIONS, TEXT_ALONE, Message
from sps2.common.api.unsupported_fields import Tolerant, ignored, only
from sps2.common.messages import ExactMethod, KvTransferDtype, Request, Setting, Stream, Struct

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1, extra={"noun": "token id"})]
Prompt = str | list[str | TokenId | list[TokenId]]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
StopString = Annotated[str, Meta(max_length=1024)]
Alternatives = Annotated[int, Meta(ge=0, le=20)]
TRACEPARENT = "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"

FREE = "answers are free text here"
NO_BEAMS = "there is no beam search here"
NO_GUIDE = "answers are not guided by a grammar here"
ONE_KIND = "all tokens of the vocabulary may be drawn; `logit_bias` can ban some"
WHOLE_TURNS = "an answer is always a new turn of the assistant, by the model's own chat template"


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
    progress: (
        Annotated[bool, Meta(description="chunks about the prefill as it goes on; needs `stream`")]
        | None
    ) = None


class Harmless(Tolerant, frozen=True, kw_only=True):
    """Fields that clients of OpenAI's API and of vLLM send and that are not supported here."""

    user: Annotated[str | None, ignored("nothing is kept of who asks")] = None
    safety_identifier: Annotated[str | None, ignored("as `user`")] = None
    metadata: Annotated[dict[str, Any] | None, ignored("nothing is kept")] = None
    service_tier: Annotated[str | None, ignored("there is one tier")] = None
    prompt_cache_key: Annotated[
        str | None, ignored("prefixes are found by themselves; `cache_salt` keeps them apart")
    ] = None
    prompt_cache_retention: Annotated[str | None, ignored("as `prompt_cache_key`")] = None
    prompt_cache_options: Annotated[Any, ignored("as `prompt_cache_key`")] = None
    prediction: Annotated[Any, ignored("it would only make answers faster")] = None
    parallel_tool_calls: Annotated[bool | None, ignored("there are no functions to call")] = None
    reasoning_effort: Annotated[str | None, ignored("a hint to models that think")] = None
    verbosity: Annotated[str | None, ignored("a hint to models that know it")] = None
    include_reasoning: Annotated[bool | None, ignored("as `reasoning_effort`")] = None
    spaces_between_special_tokens: Annotated[
        bool | None, ignored("special tokens are not shown")
    ] = None

    request_id: Annotated[
        str | None, ignored("answers have ids of their own; the header `X-Request-Id` is kept")
    ] = None
    guided_decoding_backend: Annotated[str | None, ignored(NO_GUIDE)] = None
    guided_whitespace_pattern: Annotated[str | None, ignored(NO_GUIDE)] = None

    store: Annotated[bool | None, only(False, why="answers are not kept")] = None
    tools: Annotated[list[Any] | None, only([], why=NO_FUNCTIONS)] = None
    tool_choice: Annotated[Any, only("none", "auto", why=NO_FUNCTIONS)] = None
    functions: Annotated[list[Any] | None, only([], why=NO_FUNCTIONS)] = None
    function_call: Annotated[Any, only("none", "auto", why=NO_FUNCTIONS)] = None
    response_format: Annotated[dict[str, Any] | None, only({"type": "text"}, why=FREE)] = None
    structured_outputs: Annotated[Any, only(why=FREE)] = None
    structural_tag: Annotated[Any, only(why=FREE)] = None
    guided_json: Annotated[Any, only(why=FREE)] = None
    guided_regex: Annotated[Any, only(why=FREE)] = None
    guided_choice: Annotated[Any, only(why=FREE)] = None
    guided_grammar: Annotated[Any, only(why=FREE)] = None
    modalities: Annotated[list[str] | None, only(["text"], why=TEXT_ALONE)] = None
    audio: Annotated[Any, only(why=TEXT_ALONE)] = None
    mm_processor_kwargs: Annotated[Any, only({}, why=TEXT_ALONE)] = None
    media_io_kwargs: Annotated[Any, only({}, why=TEXT_ALONE)] = None
    web_search_options: Annotated[Any, only(why="nothing is searched for here")] = None
    moderation: Annotated[Any, only(why="nothing is moderated here")] = None
    use_beam_search: Annotated[bool | None, only(False, why=NO_BEAMS)] = None
    early_stopping: Annotated[bool | None, only(False, why=NO_BEAMS)] = None
    length_penalty: Annotated[float | None, only(1.0, why=NO_BEAMS)] = None
    allowed_token_ids: Annotated[list[int] | None, only(why=ONE_KIND)] = None
    bad_words: Annotated[list[str] | None, only([], why=ONE_KIND)] = None
    logits_processors: Annotated[
        list[Any] | None, only([], why="no code of a request is run; `logit_bias` is supported")
    ] = None
    vllm_xargs: Annotated[Any, only({}, why="there are no extensions of vLLM here")] = None
    kv_transfer_params: Annotated[
        Any, only({}, why="the scheduler decides where KV is computed and kept")
    ] = None
    priority: Annotated[int | None, only(0, why="send `sps2.priority`, where larger is sooner")] = (
        None
    )
    prompt_logprobs: Annotated[
        int | None, only(why="completions return them with `echo` and `logprobs`")
    ] = None
    truncate_prompt_tokens: Annotated[int | None, only(why="prompts are never cut")] = None
    skip_special_tokens: Annotated[
        bool | None, only(True, why="special tokens are not shown; `logprobs` lists them")
    ] = None
    include_stop_str_in_output: Annotated[
        bool | None, only(False, why="answers end before the stop string")
    ] = None
    return_token_ids: Annotated[
        bool | None, only(False, why="answers are text; `/tokenize` gives ids")
    ] = None
    return_tokens_as_token_ids: Annotated[
        bool | None, only(False, why="`logprobs` lists tokens as text")
    ] = None


class Parameters(Harmless, frozen=True, kw_only=True, omit_defaults=True):
    """Parameters of both kinds of completion; null is the same as absent."""

    model: Annotated[str | None, Meta(description="a name of the served model, if given")] = None
    temperature: Annotated[float, Meta(ge=0, le=2, description="0 is greedy")] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1, description="0 is greedy")] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1, description="-1 and 0 are off")] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1, description="0 is off")] | None = None
    seed: (
        Annotated[
            int,
            Meta(ge=-(2**63), le=2**63 - 1, description="the same draws again; random if absent"),
        ]
        | None
    ) = None
    stop: Annotated[
        StopString | Annotated[list[StopString], Meta(max_length=32)] | None,
        Meta(description="one that is a special token of the model ends answers by its id"),
    ] = None
    stop_token_ids: (
        Annotated[list[TokenId], Meta(max_length=64, description="as well as the model's own")]
        | None
    ) = None
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
    presence_penalty: (
        Annotated[Penalty, Meta(description="of tokens that the answer has")] | None
    ) = None
    frequency_penalty: (
        Annotated[Penalty, Meta(description="the same, for each time that it has them")] | None
    ) = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100, description="1 is off")] | None = None
    logit_bias: (
        Annotated[dict[str, Bias], Meta(max_length=1024, description="by token id, as a string")]
        | None
    ) = None
    stream: Annotated[bool | None, Meta(description="server-sent events, as tokens come")] = None
    stream_options: Annotated[StreamOptions | None, Meta(description="needs `stream`")] = None
    ignore_eos: Annotated[
        bool | None, Meta(description="the model's own tokens do not end an answer")
    ] = None
    min_tokens: (
        Annotated[Count, Meta(description="nothing ends an answer before; at most `max_tokens`")]
        | None
    ) = None
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
        bool | None, only(True, why="a model's BOS is always put before a text; send token ids")
    ] = None


class ChatRequest(Parameters, Stream[ChatChunk], frozen=True, kw_only=True):
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
    add_generation_prompt: Annotated[bool | None, only(True, why=WHOLE_TURNS)] = None
    continue_final_message: Annotated[bool | None, only(False, why=WHOLE_TURNS)] = None
    add_special_tokens: Annotated[bool | None, only(False, why=WHOLE_TURNS)] = None
    chat_template: Annotated[Any, only(why=WHOLE_TURNS)] = None
    chat_template_kwargs: Annotated[Any, only({}, why=WHOLE_TURNS)] = None
    documents: Annotated[list[Any] | None, only([], why=WHOLE_TURNS)] = None


class EstimateRequest(Parameters, Request[Estimate], frozen=True, kw_only=True):
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
    add_generation_prompt: Annotated[
        bool | None,
        Meta(description="true if absent: a conversation ends with the beginning of an answer"),
    ] = None
    return_token_strs: Annotated[bool | None, Meta(description="the answer has `token_strs`")] = (
        None
    )
    continue_final_message: Annotated[bool | None, only(False, why=WHOLE_TURNS)] = None
    chat_template: Annotated[Any, only(why=WHOLE_TURNS)] = None
    chat_template_kwargs: Annotated[Any, only({}, why=WHOLE_TURNS)] = None
    mm_processor_kwargs: Annotated[Any, only({}, why=TEXT_ALONE)] = None
    tools: Annotated[list[Any] | None, only([], why=NO_FUNCTIONS)] = None


class Detokenize(Request[Text], frozen=True, kw_only=True):
    """`POST /detokenize`."""

    model: Annotated[str | None, Meta(description="a name of the served model, if given")] = None
    tokens: Annotated[list[TokenId], Meta(description="ids that the model has")]


class ListModels(Request[Models], frozen=True):
    """`GET /v1/models`."""
