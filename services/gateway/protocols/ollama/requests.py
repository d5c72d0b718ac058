"""The requests of Ollama's API; null is the same as absent."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from sps2.common.api.conversation import TEXT_ALONE
from sps2.common.api.drawing import Penalty, StopString
from sps2.common.api.requests import Alternatives
from sps2.common.api.tools import Tool
from sps2.common.api.unsupported_fields import Tolerant, ignored, only

LOADED = "the model is always loaded, as its cluster is configured"
NO_MIROSTAT = "there is no mirostat; send `temperature` and `top_p`"
NO_IMAGES = "no images are made here"

Count = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Whole = Annotated[int | None, ignored(LOADED)]
Flag = Annotated[bool | None, ignored(LOADED)]


class Options(Tolerant, frozen=True, kw_only=True):
    """How the answer is sampled."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    num_predict: Annotated[Count | None, Meta(description="no limit if it is not positive")] = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=32)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None

    repeat_last_n: Annotated[
        int | None, only(-1, why="penalties are for all tokens of prompt and answer")
    ] = None
    penalize_newline: Annotated[bool | None, only(True, why="all tokens are penalised alike")] = (
        None
    )
    tfs_z: Annotated[float | None, only(1.0, why="send `top_p` or `min_p`")] = None
    typical_p: Annotated[float | None, only(1.0, why="send `top_p` or `min_p`")] = None
    mirostat: Annotated[int | None, only(0, why=NO_MIROSTAT)] = None
    mirostat_tau: Annotated[float | None, ignored("for mirostat alone")] = None
    mirostat_eta: Annotated[float | None, ignored("for mirostat alone")] = None
    num_keep: Annotated[int | None, ignored("prompts are never cut")] = None
    num_ctx: Whole = None
    num_batch: Whole = None
    num_gpu: Whole = None
    main_gpu: Whole = None
    num_thread: Whole = None
    numa: Flag = None
    low_vram: Flag = None
    f16_kv: Flag = None
    logits_all: Flag = None
    vocab_only: Flag = None
    use_mmap: Flag = None
    use_mlock: Flag = None
    embedding_only: Flag = None


class CalledFunction(Tolerant, frozen=True, kw_only=True):
    """What a call calls; here its arguments are an object."""

    name: str
    arguments: dict[str, Any]
    index: Annotated[Any, ignored("calls are in the order in which they are given")] = None
    description: Annotated[Any, ignored("the tool has it")] = None


class Call(Tolerant, frozen=True, kw_only=True):
    """A call of an assistant's turn."""

    function: CalledFunction
    id: str | None = None
    type: Annotated[Any, ignored("all calls are of functions")] = None


class Turn(Tolerant, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[Call] | None = None
    tool_name: Annotated[str | None, Meta(description="whose result a turn of role `tool` is")] = (
        None
    )
    tool_call_id: Annotated[str | None, Meta(description="the call, if it has an id")] = None
    name: Annotated[str | None, Meta(description="as `tool_name`")] = None
    images: Annotated[list[Any] | None, only([], why=TEXT_ALONE)] = None


class Shared(Tolerant, frozen=True, kw_only=True):
    """Fields of both kinds of request."""

    model: Annotated[str, Meta(description="a name of the served model, `:latest` or not")]
    stream: Annotated[bool | None, Meta(description="true if absent")] = None
    format: Annotated[
        Literal["", "json"] | dict[str, Any] | None, Meta(description="`json`, or a JSON schema")
    ] = None
    options: Options | None = None
    think: Annotated[
        bool | Literal["low", "medium", "high"] | None,
        Meta(description="whether the model thinks first, or how much"),
    ] = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    keep_alive: Annotated[float | str | None, ignored(LOADED)] = None


class ChatBody(Shared, frozen=True, kw_only=True):
    """`POST /api/chat`."""

    messages: Annotated[
        list[Turn] | None, Meta(description="the conversation; without one nothing is done")
    ] = None
    tools: list[Tool] | None = None


class GenerateBody(Shared, frozen=True, kw_only=True):
    """`POST /api/generate`."""

    prompt: Annotated[str | None, Meta(description="without one nothing is done")] = None
    system: Annotated[str | None, Meta(description="the turn before the prompt's")] = None
    raw: Annotated[bool | None, Meta(description="continue the prompt, without a template")] = None
    template: Annotated[
        str | None, only("", why="the model has its own; send `raw` with the text of your own")
    ] = None
    suffix: Annotated[str | None, only("", why="text is only continued")] = None
    context: Annotated[list[int] | None, only([], why="send the conversation to `/api/chat`")] = (
        None
    )
    images: Annotated[list[Any] | None, only([], why=TEXT_ALONE)] = None
    width: Annotated[int | None, only(0, why=NO_IMAGES)] = None
    height: Annotated[int | None, only(0, why=NO_IMAGES)] = None
    steps: Annotated[int | None, only(0, why=NO_IMAGES)] = None


class EmbedBody(Tolerant, frozen=True, kw_only=True):
    """`POST /api/embed`."""

    model: Annotated[str, Meta(description="a name of the served model, `:latest` or not")]
    input: str | list[str]
    truncate: Annotated[bool | None, ignored("an input that is too long is refused")] = None
    options: Annotated[Options | None, ignored("nothing is drawn")] = None
    keep_alive: Annotated[float | str | None, ignored(LOADED)] = None
    dimensions: Annotated[int | None, only(why="a vector is as long as the hidden state")] = None


class ShowBody(Tolerant, frozen=True, kw_only=True):
    """`POST /api/show`."""

    model: str | None = None
    name: Annotated[str | None, Meta(description="the older name of `model`")] = None
    verbose: Annotated[bool | None, ignored("all that is known is always shown")] = None
