"""The picture of a cluster at one moment, also the output of `spsctl top --json`.

None means not known yet. Rates are per second, over the last few heartbeats.
"""

from sps2.common.messages import Placement, Struct


class Totals(Struct, frozen=True):
    """The whole cluster; `state` is "ready", "waiting" or "lost". Latencies: the last minute."""

    name: str
    model: str = ""
    state: str = "waiting"
    waiting_for: str = ""
    missing: str = ""
    """What is missing of a cluster that is ready, in words."""
    requests_s: float | None = None
    """Requests that ended, per second."""
    tokens_in_s: float | None = None
    """Prompt tokens that prefill shards computed, per second."""
    tokens_out_s: float | None = None
    ttft_p50_s: float | None = None
    ttft_p99_s: float | None = None
    tbt_p50_s: float | None = None
    tbt_p99_s: float | None = None
    queued: int | None = None
    running: int | None = None
    hidden: float | None = None
    """The share of the time of transfers between prefill shards in which they also computed."""


class Service(Struct, frozen=True):
    """A process; a tensor-parallel shard has several."""

    service: str
    state: str
    address: str = ""
    pid: int = 0
    rss_bytes: int = 0
    waiting_for: str = ""


class Shard(Struct, frozen=True):
    """A shard. Bytes are summed over its processes, the rest is the leader's."""

    id: str
    role: str
    state: str
    pid: int = 0
    address: str = ""
    busy: float | None = None
    """The share of time in which its compute thread was on a core; 1 is always."""
    pages: int | None = None
    pages_free: int | None = None
    pages_idle: int | None = None
    """Cached pages that no request uses; not included in `pages_free`."""
    owned: int | None = None
    """Requests for which it generates."""
    held: int | None = None
    """Requests whose KV it holds."""
    prefilling: int | None = None
    """Requests that it prefills."""
    in_bytes_s: float | None = None
    out_bytes_s: float | None = None
    hidden: float | None = None
    left_out: str = ""
    """Why the last prompt that could have used it did not, in words."""


class Link(Struct, frozen=True):
    """Traffic from one shard to another over the data plane."""

    source: str
    target: str
    sent_bytes: int
    bytes_s: float | None = None


class Stage(Struct, frozen=True):
    """A stage of a request, with its duration so far."""

    name: str
    seconds: float


class Request(Struct, frozen=True):
    """A request in the cluster, or one that has just ended, with `stage` "ended"."""

    request: str
    stage: str
    age_s: float
    stages: tuple[Stage, ...] = ()
    """Since it was first seen."""
    prompt_tokens: int | None = None
    processed: int | None = None
    """Tokens of the prompt that are prefilled, cached ones included."""
    cached_tokens: int | None = None
    tokens: int | None = None
    """Tokens of the answer so far."""
    max_tokens: int | None = None
    epoch: int | None = None
    owner: str = ""
    group: tuple[str, ...] = ()
    """Prefill shards."""
    holders: tuple[str, ...] = ()
    """Shards that hold its KV, the owner last."""
    attention: str = ""
    method: str = ""
    exchange_bytes: float | None = None
    hidden: float | None = None
    error: str = ""
    placements: tuple[Placement, ...] = ()
    waits_for: str = ""
    """What it waits for in the queue, or in prefill because it is held back."""


class Picture(Struct, frozen=True):
    cluster: Totals
    services: tuple[Service, ...] = ()
    shards: tuple[Shard, ...] = ()
    requests: tuple[Request, ...] = ()
    """In order of arrival."""
    links: tuple[Link, ...] = ()
