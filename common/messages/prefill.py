"""Prefill shards: a group computes a prompt."""

from sps2.common.messages.base import Done, Stream, Struct
from sps2.common.messages.fleet import Peer
from sps2.common.messages.request import Sampling, Token, TokenLogprobs
from sps2.common.messages.sharing import Exchanged, Scheme
from sps2.common.spans import Span


class Join(Stream[Done], frozen=True):
    """Scheduler to each member of a group: accept the others' frames while this is open.

    One item: accepted. Only when all members have joined may one of them begin.
    """

    request: str
    epoch: int
    peers: tuple[Peer, ...] = ()
    """Data planes of all shards of the request; they are reached before."""


class PrefillRank(Struct, frozen=True):
    """One member of a prefill group, with the spans of the prompt that it computes."""

    peers: tuple[Peer, ...]
    """By TP rank; KV heads are shared out evenly in this order."""
    spans: tuple[Span, ...]


class Target(Struct, frozen=True):
    """A shard that keeps the KV of `span`, sent by those that compute it, unless it does itself."""

    peers: tuple[Peer, ...]
    """By TP rank; each keeps its share of the KV heads."""
    span: Span


class Source(Struct, frozen=True):
    """A shard that has the KV of `spans`, of the tokens before those to be computed."""

    peers: tuple[Peer, ...]
    """By TP rank; each has its share of the KV heads."""
    spans: tuple[Span, ...]


class Prefill(Stream["Advanced | Prefilled | Deposited"], frozen=True):
    """Scheduler to each member of a group that has joined: run the prompt's layers on your spans.

    The group's spans are the end of the prompt; `prefix` has all that comes before.

    Items: now and then `Advanced`, `Prefilled` when they are computed, `Deposited` once their KV
    has left. PeerLost if the member has not joined, or not in this life.
    """

    request: str
    epoch: int
    prompt: bytes
    group: tuple[PrefillRank, ...]
    rank: int
    targets: tuple[Target, ...]
    sampling: Sampling
    scheme: Scheme = Scheme()
    prefix: tuple[Source, ...] = ()
    traceparent: str = ""
    """Of the trace span that this is a part of; see `sps2.common.tracing`."""


class Advanced(Struct, frozen=True, tag=True):
    """The layers so far come to this many of the rank's tokens."""

    tokens: int


class Prefilled(Struct, frozen=True, tag=True):
    """`token` comes from the rank that computed the prompt's last position, None from others."""

    token: Token | None
    prompt_logprobs: tuple[tuple[int, TokenLogprobs], ...]
    """(position, log-probabilities of the prompt's token at that position), own spans only."""
    prefill_s: float
    exchanged: Exchanged


class Deposited(Struct, frozen=True, tag=True):
    """All of a rank's keys and values are where they are kept, or have left for there."""

    deposit_bytes: int
