"""Requests, as the scheduler takes and answers them."""

from sps2.common.messages.base import Stream, Struct
from sps2.common.messages.directory import Placement
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
    """Whether `Progress` is told."""
    open_ended: bool = False
    """Whether the caller left the length of the answer open: `max_tokens` may be cut."""
    traceparent: str = ""
    """Of the trace span that this is a part of; see `sps2.common.tracing`."""


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
    """Of the exchange between prefill shards, by purpose, from the formulas."""
    migration_pays_after: int | None = None
    """Tokens of answer from which on moving all KV to the owner would have moved fewer bytes."""
    cached_tokens: int = 0
    """From the first on, whose KV was cached."""
    queued_s: float = 0.0
    """In the queue, all times that the request was planned together."""


class Displaced(Struct, frozen=True, tag=True):
    """The plan of that epoch is over before its end; the request is planned again, in its turn."""

    epoch: int


class Progress(Struct, frozen=True, tag=True):
    """How far the prefill is, in tokens of the prompt: a layer of n counts as one of n's tokens.

    processed: of `total`, `cached` ones included.
    eta_ms: until its end; None while there is no telling.
    """

    processed: int
    total: int
    cached: int
    eta_ms: float | None = None


class FirstToken(Struct, frozen=True, tag=True):
    """Prefill is over."""

    token: Token
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    prefill_s: float = 0.0
    exchanged: tuple[Exchanged, ...] = ()
    """By rank."""


class Finished(Struct, frozen=True, tag=True):
    """The owner is done; no token follows."""

    tokens: int
    q_bytes: int
    state_bytes: int
    deposit_bytes: int
    """KV moved to shards that keep it, from others; 0 where it stayed."""
