"""Messages of decode shards, which hold KV and generate tokens."""

from sps2.common.messages.base import Done, FinishReason, Request, Stream, Struct
from sps2.common.messages.directory import Evicted
from sps2.common.messages.fleet import Peer
from sps2.common.messages.request import Sampling, Token
from sps2.common.spans import Span


class Hold(Stream["Held | Filled"], frozen=True):
    """Scheduler to a shard: keep pages for the KV of `span` while this is open.

    `capacity` is the number of tokens that the span may grow to (only the owner's grows).
    Items: `Held` once frames are accepted, then `Filled` once every layer of `span` has arrived;
    its full pages are cached from then on. Refused if `shared` are not cached here.
    """

    request: str
    epoch: int
    span: Span
    capacity: int
    hashes: tuple[bytes, ...] = ()
    """Hashes of the prompt's full pages, from the first on; pages without a hash are not cached."""
    shared: tuple[Span, ...] = ()
    """Spans of tokens whose cached pages the request shares."""
    traceparent: str = ""
    """The `traceparent` of the enclosing trace span; see `sps2.common.tracing`."""
    sources: tuple[Peer, ...] = ()
    """Data planes that send the KV: the loss of one before `Filled` raises PeerLost."""
    from_disk: tuple[Span, ...] = ()
    """Those of `shared` to read from disk, into pages of their own, before `Held`; they are cached
    from then on. Refused if one cannot be read."""
    stop: int | None = None
    """KV arrives up to this position first, and later up to that of each `Expect`; None: all of it
    at once."""


class Held(Struct, frozen=True, tag=True):
    pages: int


class Filled(Struct, frozen=True, tag=True):
    kv_bytes: int
    """Received since the request is held."""


class Expect(Stream["Held | Filled"], frozen=True):
    """Scheduler to a shard that holds a request: the next chunk's KV comes, up to `stop`.

    Items and errors are those of `Hold`.
    """

    request: str
    epoch: int
    stop: int
    sources: tuple[Peer, ...] = ()


class Decode(Stream["Short | Decoded"], frozen=True):
    """Scheduler to owner: join the running batch. `Decoded` comes when generation ends."""

    request: str
    epoch: int
    prompt: bytes
    first: Token
    holders: tuple[tuple[Peer, ...], ...]
    """The other shards with KV of this request: their peers by TP rank."""
    sampling: Sampling
    parent: bytes = b""
    """Hash of the prompt's last full page, or the root if it has none; empty if nothing is to be
    cached."""
    traceparent: str = ""
    """The `traceparent` of the enclosing trace span; see `sps2.common.tracing`."""


class Cache(Request[Done], frozen=True):
    """Leader of an owner to its followers: cache the request's own pages from number `first` on."""

    request: str
    epoch: int
    hashes: tuple[bytes, ...]
    first: int


class Assist(Request[Done], frozen=True):
    """Leader of an owner to its followers: be ready for the request's steps while it is held.

    The steps themselves come over the data plane.
    """

    request: str
    epoch: int
    prompt_tokens: int
    holders: tuple[Peer, ...]
    """The follower's counterparts in the other shards with KV of this request."""
    stages: tuple[Peer, ...] = ()
    """The data planes of the shard's processes, if they are stages of a pipeline."""


class Evict(Request[Done], frozen=True):
    """Leader of a decode shard to its followers: drop cached pages, or pin them."""

    evicted: Evicted


class Short(Struct, frozen=True, tag=True):
    """The pages of the answer end soon: it pauses there until a `Grow` adds more."""


class Grow(Request[Done], frozen=True):
    """Scheduler to owner, and leader to followers: add pages to a request that is held.

    capacity: as in `Hold`. Refused if too few pages are free.
    """

    request: str
    epoch: int
    capacity: int


class Decoded(Struct, frozen=True, tag=True):
    tokens: int
    finish: FinishReason
    q_bytes: int
    state_bytes: int
    hashes: tuple[bytes, ...] = ()
    """Hashes of the pages that the answer filled and the owner has cached."""


class Follow(Stream[Token], frozen=True):
    """Gateway to owner: send the tokens of a request, from number `start` to the last."""

    request: str
    epoch: int
    start: int = 0
