"""Every message between services: the type is the protocol, its class name the method on the wire.

`Request[Reply]` is answered once; `Stream[Item]` is answered by items until either side ends it.
A stream that stands for a resource (`Register`, `Reserve`, `Hold`) keeps it for as long as the
stream is open: however its caller ends, the resource is released.
The public messages (completions, chat) are in `sps2.common.api`.
"""

from typing import Generic, Literal, TypeVar

import msgspec

from sps2.common.spans import Span

Reply = TypeVar("Reply")
Item = TypeVar("Item")

Role = Literal["prefill", "decode", "any"]
"""`any` does both: what it computes of a prompt's KV stays with it."""
FinishReason = Literal["stop", "length"]


class Request(msgspec.Struct, Generic[Reply], frozen=True, forbid_unknown_fields=True):
    """A call with one reply of type `Reply`. Subclass it directly, as `Request[Reply]`."""


class Stream(msgspec.Struct, Generic[Item], frozen=True, forbid_unknown_fields=True):
    """A call answered by any number of `Item`s. Subclass it directly, as `Stream[Item]`."""


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Plain data inside messages and replies."""


class Done(Struct, frozen=True):
    """An empty reply."""


# --- what a request is ---


class Sampling(Struct, frozen=True):
    """How tokens are drawn and when to stop. `top_k` 0 and `min_p` 0 mean off."""

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    """How many alternatives to report with each token; None reports no log-probabilities."""
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    """Ends of generation: the model's own (unless ignored) and the caller's."""
    prompt_logprobs: int | None = None
    """As `logprobs`, for the prompt's own tokens (`echo` with `logprobs`)."""


class TokenLogprobs(Struct, frozen=True):
    """Log-probability of one token and of the most likely ones at its place, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Token(Struct, frozen=True):
    """Token number `index` of the answer. The last one says why generation ended."""

    index: int
    id: int
    logprobs: TokenLogprobs | None = None
    finish: FinishReason | None = None


# --- the fleet ---


class Peer(Struct, frozen=True):
    """Where a shard's data plane listens. `name` is unique to one life of one process."""

    name: str
    address: str


class Follower(Struct, frozen=True):
    """A process of a shard other than its leader."""

    address: str
    """Of its control bus."""
    peer: Peer


class Shard(Struct, frozen=True):
    """A worker as its leader presents it. `peer.name` changes with every restart, `id` does not."""

    id: str
    role: Role
    pid: int
    address: str
    """Of its control bus."""
    peer: Peer
    pages: int = 0
    """Size of its KV pool; 0 on prefill shards, which keep no KV."""
    page_tokens: int = 0
    followers: tuple[Follower, ...] = ()
    """The other processes of a tensor-parallel shard, in order of their TP rank."""

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The data planes of its processes, by TP rank."""
        return (self.peer, *(follower.peer for follower in self.followers))


class Lead(Stream[Done], frozen=True):
    """Leader to follower: both belong to one shard while this is open. One item: accepted."""


class Register(Stream[Done], frozen=True):
    """Shard to scheduler: the shard is a member while this is open. One item: accepted."""

    shard: Shard


# --- KV directory ---


class Placement(Struct, frozen=True):
    """`span` of a request's tokens lies on shard `shard`, which reserved `pages` pages for it."""

    shard: str
    span: Span
    pages: int
    shared: tuple[Span, ...] = ()
    """Of the tokens before, those whose cached pages are there; whole pages."""


class Holding(Struct, frozen=True):
    """What one shard says it holds for one request."""

    request: str
    epoch: int
    span: Span
    pages: int


class Announce(Stream["Evicted"], frozen=True):
    """Shard to directory: pool size and what it holds; its pages count while this is open.

    Items: cached pages to forget. The first, of none, says: accepted.
    """

    shard: str
    peer: str
    pages: int
    page_tokens: int
    holdings: tuple[Holding, ...] = ()
    cached: tuple[bytes, ...] = ()
    """Names of all cached pages."""


class Evicted(Struct, frozen=True):
    names: tuple[bytes, ...]


class Report(Request[Done], frozen=True):
    """Shard to directory, every beat: what it holds now."""

    shard: str
    peer: str
    holdings: tuple[Holding, ...]
    cached: tuple[bytes, ...] = ()
    """Names of pages whose makers have ended since the last report."""
    missing: tuple[bytes, ...] = ()
    """Names that requests wanted to share since then, and that are not cached there."""


class Room(Struct, frozen=True):
    """Pages per shard that keeps KV: free now, and in all."""

    free: dict[str, int]
    total: dict[str, int]


class Watch(Stream[Room], frozen=True):
    """Scheduler to directory: the room, at once and after every change."""


class Lookup(Request["Cached"], frozen=True):
    """Scheduler to directory: which of a prompt's pages are cached."""

    names: tuple[bytes, ...]


class CachedRun(Struct, frozen=True):
    """`pages` pages, one after the other, are cached on `shard`; `idle` of them nobody uses now."""

    shard: str
    pages: int
    idle: int


class Cached(Struct, frozen=True):
    """From the prompt's first page on."""

    runs: tuple[CachedRun, ...]


class Reserve(Stream[Room], frozen=True):
    """Scheduler to directory: a lease on pages, held while this is open.

    One item once granted. Refused if a shard has too few free pages, or no longer has those that
    are to be shared. `restore` re-takes a lease that a lost directory had granted.
    """

    request: str
    epoch: int
    placements: tuple[Placement, ...]
    shared: dict[str, tuple[bytes, ...]] = {}
    """By shard, the cached pages that the request uses."""
    restore: bool = False
    own: dict[str, tuple[bytes, ...]] = {}
    """To restore: what `Committed` named."""


class Commit(Request["Committed"], frozen=True):
    """Scheduler to directory: the request's KV is complete in its places and may be decoded.

    `names`, by shard, are its own pages that are full now: they are cached, and used by its lease.
    """

    request: str
    epoch: int
    names: dict[str, tuple[bytes, ...]] = {}


class Committed(Struct, frozen=True):
    names: dict[str, tuple[bytes, ...]]
    """By shard, those of the names that nobody else had."""


class Lease(Struct, frozen=True):
    """One request's places as the directory knows them."""

    request: str
    epoch: int
    committed: bool
    placements: tuple[Placement, ...]


class Leases(Struct, frozen=True):
    leases: tuple[Lease, ...]
    free: dict[str, int]
    total: dict[str, int]
    leaked_pages: int
    """Pages that shards hold for requests nobody leases; 0 unless something was lost."""
    cached_pages: int = 0
    """Of the prefix cache; those that no lease uses count as free too."""
    evicted_pages: int = 0
    """Since the directory started."""


class ListLeases(Request[Leases], frozen=True):
    """Anyone to directory: every lease, and the room left."""


# --- how a prefill group works together ---

Setting = Literal["exact", "balanced", "fast"]
"""How much attention may be left out."""
ExactMethod = Literal["ring", "gather", "ulysses", "usp", "pass_q"]
Method = ExactMethod | Literal["csa", "strided", "star"]
"""How a prefill group shares its attention; see `services/prefill`."""
Wire = Literal["plain", "int8"]


class Selection(Struct, frozen=True):
    """What CSA moves of the keys and values that one rank has and a later one could use.

    An owner keeps a block for a consumer and KV head if its importance is at least `drop`: the
    share of attention that it gets from the consumer's probes. Below `fine` it travels in 4 bits.
    """

    drop: tuple[float, ...]
    """By layer."""
    fine: tuple[float, ...]
    """By layer."""
    probes: int = 4
    """Query rows of 128 that are probed."""
    suffix: int = 64
    """Last rows of the prompt, all of which are probed."""
    rounds: Literal[1, 2] = 1
    """1: an owner normalises by what it and the consumer see, 2: by all that the probes see."""
    held_out: float = 0.05
    """Mean mass that held-out probes may lose before a KV head fetches everything."""
    budget: float | None = None
    """HiRE's selector instead of `drop`: each owner sends this share of its blocks, the best."""


class Scheme(Struct, frozen=True):
    """How a prefill group works together.

    Args:
        ulysses: ranks that split heads between them, a divisor of the group; only USP has a choice.
        wire: what keys and values travel as: in the model's dtype, or quantised.
        selection: of CSA.
        pipelined: transfers run beside arithmetic; without it, one after the other.
    """

    method: Method = "ring"
    ulysses: int = 1
    wire: Wire = "plain"
    selection: Selection | None = None
    pipelined: bool = True


class Wish(Struct, frozen=True):
    """What a request asks of its prefill; None leaves it to the cluster."""

    sp_degree: int | None = None
    """Prefill shards."""
    attention: Setting | None = None
    method: ExactMethod | None = None
    wire: Wire | None = None
    pipelined: bool | None = None


class Exchanged(Struct, frozen=True):
    """What a rank's exchange with its group took; seconds are of wall-clock time.

    sent_bytes: payload by purpose: "kv", "q", "state", "probe"; and of what a prefix takes,
        "prefix_q", and "prefix_state" that came.
    compute_s: while something was computed; attention_s: of these, for attention.
    exchange_s: while a transfer was awaited or under way. hidden_s: of these, while computing.
    blocks, kept_blocks: that CSA could have moved to this rank, and moved; per KV head and layer.
    lost: by layer, the mean mass that held-out probes lost; empty but for CSA.
    """

    sent_bytes: dict[str, int]
    compute_s: float
    attention_s: float
    exchange_s: float
    hidden_s: float
    blocks: int = 0
    kept_blocks: int = 0
    lost: tuple[float, ...] = ()


# --- scheduler ---


class Submit(Stream["Placed | FirstToken | Finished"], frozen=True):
    """Gateway to scheduler: run a request. Closing the stream cancels it everywhere."""

    request: str
    prompt: bytes
    """Token ids, little-endian int32."""
    sampling: Sampling
    wish: Wish = Wish()
    cache_salt: str = ""
    """Requests share cached KV only with those of the same salt."""


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
    """KV moved from prefill shards to decode shards; 0 where it stayed."""


# --- prefill ---


class Join(Stream[Done], frozen=True):
    """Scheduler to each member of a group: accept the others' frames while this is open.

    One item: accepted. Only when all members have joined may one of them begin.
    """

    request: str
    epoch: int


class PrefillRank(Struct, frozen=True):
    """One member of a prefill group, with the spans of the prompt that it computes."""

    peers: tuple[Peer, ...]
    """By TP rank; KV heads are shared out evenly in this order."""
    spans: tuple[Span, ...]


class Target(Struct, frozen=True):
    """A shard that keeps the KV of `span`; a member of the group keeps only what it computes."""

    peers: tuple[Peer, ...]
    """By TP rank; each keeps its share of the KV heads."""
    span: Span


class Source(Struct, frozen=True):
    """A shard that has the KV of `spans`, of the tokens before those to be computed."""

    peers: tuple[Peer, ...]
    """By TP rank; each has its share of the KV heads."""
    spans: tuple[Span, ...]


class Prefill(Stream["Prefilled | Deposited"], frozen=True):
    """Scheduler to each member of a group that has joined: run the prompt's layers on your spans.

    The group's spans are the end of the prompt; `prefix` has all that comes before.

    Items: `Prefilled` when they are computed, `Deposited` once their KV has left. Invalid if the
    member has not joined.
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


# --- decode ---


class Hold(Stream["Held | Filled"], frozen=True):
    """Scheduler to a shard: keep pages for the KV of `span` while this is open.

    `capacity` is how many tokens may lie here in the end (the owner's span grows).
    Items: `Held` once frames are accepted, `Filled` once every layer of `span` has arrived; its
    full pages are cached from then on. Refused if `shared` are not cached here.
    """

    request: str
    epoch: int
    span: Span
    capacity: int
    names: tuple[bytes, ...] = ()
    """Of the prompt's full pages, from the first on; none are cached without."""
    shared: tuple[Span, ...] = ()
    """Tokens whose cached pages the request uses too."""
    in_place: bool = False
    """This shard computes the KV of `span` itself, as a member of the prefill group."""


class Held(Struct, frozen=True, tag=True):
    pages: int


class Filled(Struct, frozen=True, tag=True):
    kv_bytes: int


class Decode(Request["Decoded"], frozen=True):
    """Scheduler to owner: join the running batch; answered when generation ends."""

    request: str
    epoch: int
    prompt: bytes
    first: Token
    holders: tuple[tuple[Peer, ...], ...]
    """The other shards with KV of this request: their peers by TP rank."""
    sampling: Sampling
    parent: bytes = b""
    """Name of the prompt's last full page, or what the first would follow; none if nothing is to
    be cached."""


class Cache(Request[Done], frozen=True):
    """Leader of an owner to its followers: cache the request's own pages from number `first` on."""

    request: str
    epoch: int
    names: tuple[bytes, ...]
    first: int


class Assist(Request[Done], frozen=True):
    """Leader of an owner to its followers: be ready for this request's steps while it is held.

    The steps themselves come over the data plane.
    """

    request: str
    epoch: int
    prompt_tokens: int
    holders: tuple[Peer, ...]
    """The follower's counterparts in the other shards with KV of this request."""


class Evict(Request[Done], frozen=True):
    """Leader of a decode shard to its followers: forget cached pages."""

    names: tuple[bytes, ...]


class Decoded(Struct, frozen=True):
    tokens: int
    finish: FinishReason
    q_bytes: int
    state_bytes: int
    names: tuple[bytes, ...] = ()
    """Of the pages that the answer filled, which the owner has cached."""


class Follow(Stream[Token], frozen=True):
    """Gateway to owner: the tokens of a request, from number `start`, until the last."""

    request: str
    epoch: int
    start: int = 0


# --- every service ---


class Link(Struct, frozen=True):
    """What one shard has sent to another over the data plane, headers included."""

    source: str
    target: str
    sent_bytes: int
    frames: int


class Info(Struct, frozen=True):
    """What a service says of itself."""

    service: str
    pid: int
    version: str
    state: Literal["starting", "ready", "waiting"]
    waiting_for: str = ""
    """What it waits for when it is not ready, in words."""
    rss_bytes: int = 0
    up_s: float = 0.0
    counters: dict[str, float] = {}
    """Monotonic counts and current gauges, by metric name."""
    links: tuple[Link, ...] = ()


class Describe(Request[Info], frozen=True):
    """Anyone to any service."""


class RequestStatus(Struct, frozen=True):
    """One request in the cluster. Times are seconds since it was submitted."""

    request: str
    stage: Literal["queued", "reserving", "prefill", "decode"]
    prompt_tokens: int
    age_s: float
    epoch: int
    sp_degree: int = 0
    owner: str = ""
    placements: tuple[Placement, ...] = ()
    cached_tokens: int = 0


class ShardStatus(Struct, frozen=True):
    """One shard as the scheduler sees it; `state` names a loss until the shard is back."""

    id: str
    role: Role
    state: Literal["ready", "busy", "lost"]
    pid: int = 0
    address: str = ""
    peer: str = ""
    transport: str = ""
    pages: int = 0
    pages_free: int = 0
    requests: tuple[str, ...] = ()
    followers: tuple[str, ...] = ()
    """Control-bus addresses of its other processes."""


class FleetStatus(Struct, frozen=True):
    shards: tuple[ShardStatus, ...]
    requests: tuple[RequestStatus, ...]
    waiting_for: str
    """Empty when every shard is there; else what is missing, in words."""
    serving: bool = False
    """Whether prompts are prefilled and decoded, if on fewer shards than configured."""


class ShowFleet(Request[FleetStatus], frozen=True):
    """Anyone to scheduler."""


class ServiceStatus(Struct, frozen=True):
    service: str
    address: str
    state: Literal["starting", "ready", "waiting", "lost"]
    pid: int = 0
    waiting_for: str = ""
    rss_bytes: int = 0
    up_s: float = 0.0
    counters: dict[str, float] = {}


class ClusterStatus(Struct, frozen=True):
    """`spsctl status --json`."""

    model: str
    version: str
    ready: bool
    waiting_for: str
    services: tuple[ServiceStatus, ...]
    shards: tuple[ShardStatus, ...]
    requests: tuple[RequestStatus, ...]
    leases: tuple[Lease, ...]
    leaked_pages: int
    links: tuple[Link, ...] = ()


class ShowCluster(Request[ClusterStatus], frozen=True):
    """Anyone to gateway: the whole cluster at a glance."""


class CancelRequest(Request[Done], frozen=True):
    """Anyone to gateway: end a request by its id. Invalid if there is none."""

    request: str
