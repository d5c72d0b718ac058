"""What there is to see of a cluster at one moment, also as `spsctl top --json`.

None is what nobody has told yet. Rates are per second, over the last few heartbeats.
"""

from sps2.common.messages import Placement, Struct


class Totals(Struct, frozen=True):
    """The whole cluster: "ready", "waiting" or "lost". Latencies are of the last minute."""

    name: str
    model: str = ""
    state: str = "waiting"
    waiting_for: str = ""
    missing: str = ""
    """What is not there of a cluster that is ready."""
    requests_s: float | None = None
    """That ended."""
    tokens_in_s: float | None = None
    """Of prompts, computed by prefill shards."""
    tokens_out_s: float | None = None
    ttft_p50_s: float | None = None
    ttft_p99_s: float | None = None
    tbt_p50_s: float | None = None
    tbt_p99_s: float | None = None
    queued: int | None = None
    running: int | None = None
    hidden: float | None = None
    """Of the time of transfers between prefill shards, the part with arithmetic beside it."""


class Service(Struct, frozen=True):
    """A process; a shard of several has one for each."""

    service: str
    state: str
    address: str = ""
    pid: int = 0
    rss_bytes: int = 0
    waiting_for: str = ""


class Shard(Struct, frozen=True):
    """A worker. Of several processes bytes are added up, the rest is the leader's."""

    id: str
    role: str
    state: str
    pid: int = 0
    address: str = ""
    busy: float | None = None
    """Of the time, that its computing thread was on a core; 1 is always."""
    pages: int | None = None
    pages_free: int | None = None
    pages_idle: int | None = None
    """Cached ones that no request uses; not among the free."""
    owned: int | None = None
    """Requests that it generates for."""
    held: int | None = None
    """Requests with KV here."""
    prefilling: int | None = None
    """Requests whose prefill it takes part in."""
    in_bytes_s: float | None = None
    out_bytes_s: float | None = None
    hidden: float | None = None


class Link(Struct, frozen=True):
    """What one shard sends another over the data plane."""

    source: str
    target: str
    sent_bytes: int
    bytes_s: float | None = None


class Stage(Struct, frozen=True):
    """A stage that a request entered; of the last one, the time so far."""

    name: str
    seconds: float


class Request(Struct, frozen=True):
    """A request in the cluster, or one that ended a moment ago: `stage` is "ended" then."""

    request: str
    stage: str
    age_s: float
    stages: tuple[Stage, ...] = ()
    """From when on it was watched."""
    prompt_tokens: int | None = None
    processed: int | None = None
    """Of the prompt, while it is in prefill; cached tokens included."""
    cached_tokens: int | None = None
    tokens: int | None = None
    """Of the answer so far."""
    max_tokens: int | None = None
    epoch: int | None = None
    owner: str = ""
    group: tuple[str, ...] = ()
    """Prefill shards."""
    holders: tuple[str, ...] = ()
    """Shards with KV of it, the owner last."""
    attention: str = ""
    method: str = ""
    exchange_bytes: float | None = None
    hidden: float | None = None
    error: str = ""
    placements: tuple[Placement, ...] = ()


class Picture(Struct, frozen=True):
    cluster: Totals
    services: tuple[Service, ...] = ()
    shards: tuple[Shard, ...] = ()
    requests: tuple[Request, ...] = ()
    """In order of arrival."""
    links: tuple[Link, ...] = ()
