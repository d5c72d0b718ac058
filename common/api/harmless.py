"""Fields that clients of OpenAI's API and of vLLM send, and that are not supported here."""

from typing import Annotated, Any

from sps2.common.api.conversation import OLD_FUNCTIONS, TEXT_ALONE
from sps2.common.api.drawing import Drawing
from sps2.common.api.unsupported_fields import ignored, only

NO_BEAMS = "there is no beam search here"


class Harmless(Drawing, frozen=True, kw_only=True):
    """Fields that clients of OpenAI's API and of vLLM send and that are not supported here."""

    user: Annotated[str | None, ignored("nothing is kept of who asks")] = None
    store: Annotated[bool | None, ignored("answers are not kept")] = None
    safety_identifier: Annotated[str | None, ignored("as `user`")] = None
    metadata: Annotated[dict[str, Any] | None, ignored("nothing is kept")] = None
    service_tier: Annotated[str | None, ignored("there is one tier")] = None
    prompt_cache_key: Annotated[
        str | None, ignored("prefixes are found by themselves; `cache_salt` keeps them apart")
    ] = None
    prompt_cache_retention: Annotated[str | None, ignored("as `prompt_cache_key`")] = None
    prompt_cache_options: Annotated[Any, ignored("as `prompt_cache_key`")] = None
    prediction: Annotated[Any, ignored("it would only make answers faster")] = None
    reasoning_effort: Annotated[str | None, ignored("a hint to models that think")] = None
    verbosity: Annotated[str | None, ignored("a hint to models that know it")] = None
    spaces_between_special_tokens: Annotated[
        bool | None, ignored("special tokens have no spaces around them")
    ] = None

    request_id: Annotated[
        str | None, ignored("answers have ids of their own; the header `X-Request-Id` is kept")
    ] = None

    functions: Annotated[list[Any] | None, only([], why=OLD_FUNCTIONS)] = None
    function_call: Annotated[Any, only("none", "auto", why=OLD_FUNCTIONS)] = None
    modalities: Annotated[list[str] | None, only(["text"], why=TEXT_ALONE)] = None
    audio: Annotated[Any, only(why=TEXT_ALONE)] = None
    mm_processor_kwargs: Annotated[Any, only({}, why=TEXT_ALONE)] = None
    media_io_kwargs: Annotated[Any, only({}, why=TEXT_ALONE)] = None
    web_search_options: Annotated[Any, only(why="nothing is searched for here")] = None
    moderation: Annotated[Any, only(why="nothing is moderated here")] = None
    use_beam_search: Annotated[bool | None, only(False, why=NO_BEAMS)] = None
    early_stopping: Annotated[bool | None, only(False, why=NO_BEAMS)] = None
    length_penalty: Annotated[float | None, only(1.0, why=NO_BEAMS)] = None
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
