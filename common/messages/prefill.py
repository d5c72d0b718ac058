"""Messages of prefill shards: a group computes a prompt."""

from sps2.common.messages.base import Done, Request, Stream, Struct
from sps2.common.messages.fleet import Peer
from sps2.common.messages.request import Sampling, Token, TokenLogprobs
from sps2.common.messages.sharing import Exchanged, Scheme
from sps2.common.spans import Span

LEAST_SHARE = 1 / 8
"""Share of a shard's time that prefills get while more urgent ones hold them back."""
PIECE_ROWS = 128
"""Passes of up to this many rows are a single piece of arithmetic where no prompt of theirs
exchanges anything: with so few, a thread's waking for every piece takes as long as the arithmetic.
Prompts that arrive during such a pass wait for its end."""


class Join(Stream[Done], frozen=True):
    """Scheduler to each member of a group: accept the others' frames while this is open.

    One item: accepted. No member may begin before all have joined.
    """

    request: str
    epoch: int
    peers: tuple[Peer, ...] = ()
    """Data planes of all shards of the request; they are reached before the item is sent."""


class PrefillRank(Struct, frozen=True):
    """One member of a prefill group, with the spans of the prompt that it computes."""

    peers: tuple[Peer, ...]
    """Data planes by TP rank; KV heads are split evenly in this order."""
    spans: tuple[Span, ...]


class Target(Struct, frozen=True):
    """A shard that keeps the KV of `span`. Ranks send it what it does not compute itself."""

    peers: tuple[Peer, ...]
    """Data planes by TP rank; each keeps its share of the KV heads."""
    span: Span


class Source(Struct, frozen=True):
    """A shard that has the KV of `spans` of the prefix, which is not computed again."""

    peers: tuple[Peer, ...]
    """Data planes by TP rank; each has its share of the KV heads."""
    spans: tuple[Span, ...]


class Prefill(Stream["Advanced | Prefilled | Deposited"], frozen=True):
    """Scheduler to each joined member of a group: run the prompt's layers on your spans.

    The group's spans are a chunk of the prompt, which ends with the prompt or before; `prefix` has
    the KV of everything before the chunk.

    Items: `Advanced` now and then, `Prefilled` when the spans are computed, `Deposited` once their
    KV has left. PeerLost if the member has not joined, or has restarted since.
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
    """The `traceparent` of the enclosing trace span; see `sps2.common.tracing`."""
    urgency: float = 0.0
    """The larger, the more urgent: a shard computes first what is most urgent, and holds back the
    rest meanwhile. Shards of several processes ignore it."""
    threads: int = 0
    """Compute threads that it may use, if more than those of the shard."""
    shares_steps: bool = False
    """Whether its passes take the decode steps of a mixed shard along, in place of running beside
    them: no step waits for more than one pass."""


class Urge(Request[Done], frozen=True):
    """Scheduler to each member of a group: the prefill has this urgency from now on."""

    request: str
    epoch: int
    urgency: float


class Advanced(Struct, frozen=True, tag=True):
    """Progress of a rank: the layers computed so far, converted to tokens of its spans."""

    tokens: int


class Received(Struct, frozen=True):
    """Bytes of large frames that a process has received from a peer, and the seconds they took.

    A time in which frames of several peers came at once counts in equal parts for each.
    """

    peer: str
    nbytes: int
    seconds: float


class Prefilled(Struct, frozen=True, tag=True):
    """`token` is set by the rank that computed the prompt's last position, and None from others."""

    token: Token | None
    prompt_logprobs: tuple[tuple[int, TokenLogprobs], ...]
    """(position, log-probabilities of the prompt's token there), for the rank's spans only."""
    prefill_s: float
    exchanged: Exchanged
    pooled: bytes = b""
    """Little-endian float32, as `Sampling.pooling` says: the sum of the hidden states of the rank's
    spans, or that of the prompt's last position; empty from ranks without any."""
    received: tuple[Received, ...] = ()
    """By the process meanwhile, by peer."""


class Deposited(Struct, frozen=True, tag=True):
    """All of a rank's KV is where it is kept, or on its way there."""

    deposit_bytes: int
    saved_bytes: int = 0
    """That lossless packing made of it."""
