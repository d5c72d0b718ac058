"""Messages by which the gateway submits requests to the scheduler."""

from sps2.common.messages.base import Request, Stream, Struct
from sps2.common.messages.directory import Pinned, Placement
from sps2.common.messages.request import Sampling, Token, TokenLogprobs
from sps2.common.messages.sharing import Exchanged, PrefillOptions, Scheme, Setting


class Submit(Stream["Placed | Displaced | Progress | FirstToken | Finished"], frozen=True):
    """Gateway to scheduler: run a request. Closing the stream cancels it everywhere."""

    request: str
    prompt: bytes
    """Token ids, little-endian int32."""
    sampling: Sampling
    options: PrefillOptions = PrefillOptions()
    cache_salt: str = ""
    """Requests share cached KV only with those of the same salt."""
    progress: bool = False
    """Whether to send `Progress` items."""
    open_ended: bool = False
    """Whether the caller set no length of the answer: `max_tokens` may be reduced."""
    caller: str = ""
    """Callers share the cluster fairly; empty: one like all others without a name."""
    room_tokens: int = 0
    """Room for this many tokens of the answer is reserved at least: it resumes an answer that gave
    its KV up to others; see `Preempted`."""
    traceparent: str = ""
    """The `traceparent` of the enclosing trace span; see `sps2.common.tracing`."""
    priority: int = 0
    """The larger, the sooner."""
    max_ttft_s: float | None = None
    """Refused if the first token is predicted to come later than this after its arrival."""


class Predicted(Struct, frozen=True):
    """What is predicted of a request. Without room now, only `waits_for` and `tbt_s` are known."""

    waits_for: str
    queue_s: float
    prefill_s: float
    tbt_s: float | None
    sp_degree: int = 0
    scheme: Scheme = Scheme()
    predicted_bytes: dict[str, int] = {}
    cached_tokens: int = 0


class Predict(Request[Predicted], frozen=True):
    """Gateway to scheduler: predict what would become of a request, without running it."""

    submit: Submit


class Pin(Request[Pinned], frozen=True):
    """Gateway to scheduler: keep the cached pages of a prompt on disk, or do so no longer."""

    submit: Submit
    keep: bool


class Placed(Struct, frozen=True, tag=True):
    """The request was planned; follow its tokens at the owner."""

    epoch: int
    owner: str
    owner_address: str
    sp_degree: int
    placements: tuple[Placement, ...]
    attention: Setting
    scheme: Scheme
    predicted_bytes: dict[str, int]
    """Bytes between prefill shards by purpose, predicted by the formulas. This, the degree and the
    scheme are those of the first chunk, if the prompt is computed in several."""
    migration_pays_after: int | None = None
    """Length of the answer from which on moving all KV to the owner would have been cheaper."""
    cached_tokens: int = 0
    """Tokens of the prompt, from the first on, whose KV was cached."""
    queued_s: float = 0.0
    """Seconds in the queue, summed over all times that the request was planned."""


class Displaced(Struct, frozen=True, tag=True):
    """The plan of `epoch` was given up; the request is planned again when its turn comes."""

    epoch: int


class Progress(Struct, frozen=True, tag=True):
    """Progress of the prefill in tokens of the prompt; one of n layers counts as 1/n token each.

    processed: of `total`, `cached` tokens included.
    eta_ms: ms until its end; None while unknown.
    """

    processed: int
    total: int
    cached: int
    eta_ms: float | None = None


class FirstToken(Struct, frozen=True, tag=True):
    """Prefill is over: the first token of the answer, and figures of the prefill."""

    token: Token
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    prefill_s: float = 0.0
    exchanged: tuple[Exchanged, ...] = ()
    """Figures of each shard that computed any of the prompt, in order."""
    later_degrees: tuple[int, ...] = ()
    """SP degrees of the chunks after the first, in order."""
    later_predicted_bytes: int = 0
    """Bytes between prefill shards of those chunks, predicted by the formulas."""
    pooled: tuple[bytes, ...] = ()
    """The parts of the prompt's embedding, which are added; see `Prefilled`."""


class Finished(Struct, frozen=True, tag=True):
    """The owner has finished; no token follows."""

    tokens: int
    q_bytes: int
    state_bytes: int
    deposit_bytes: int
    """Bytes of KV that other shards sent to those that keep it; 0 if it stayed where computed."""
    deposit_saved_bytes: int = 0
    """Bytes of these that lossless packing saved."""
