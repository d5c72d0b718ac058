"""What every service tells of itself, and the scheduler of all."""

from typing import Literal

from sps2.common.messages.base import Done, Request, Role, Struct
from sps2.common.messages.directory import Lease, Placement


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


class Greeted(Struct, frozen=True):
    """The answering service's clocks: `at_s` is since the epoch, `monotonic_s` since anything."""

    at_s: float
    monotonic_s: float


class Greet(Request[Greeted], frozen=True):
    """Any service to one that it works with, before anything else, and to compare clocks; it stays
    as it is, so that services of all versions understand it. Invalid if they differ."""

    service: str
    version: str
    schema: str = ""
    """Of `schema_hash`: two commits of one version may differ."""


class RequestStatus(Struct, frozen=True):
    """One request in the cluster. Times are seconds since it was submitted."""

    request: str
    stage: Literal["queued", "reserving", "prefill", "transfer", "decode"]
    prompt_tokens: int
    age_s: float
    epoch: int
    sp_degree: int = 0
    owner: str = ""
    placements: tuple[Placement, ...] = ()
    cached_tokens: int = 0
    group: tuple[str, ...] = ()
    """Prefill shards."""
    max_tokens: int = 0
    """Of the answer."""


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
    """Whether requests are taken: what `/ready` and `sps2_ready` say too."""
    waiting_for: str
    """What is missing for that, in words; empty when requests are taken."""
    services: tuple[ServiceStatus, ...]
    shards: tuple[ShardStatus, ...]
    requests: tuple[RequestStatus, ...]
    leases: tuple[Lease, ...]
    leaked_pages: int
    links: tuple[Link, ...] = ()
    quantize: str = "none"
    missing: str = ""
    """What is missing although requests are taken, in words, such as 1 of 2 decode shards."""


class ShowCluster(Request[ClusterStatus], frozen=True):
    """Anyone to gateway: the whole cluster at a glance."""


class CancelRequest(Request[Done], frozen=True):
    """Anyone to gateway: end a request by its id. Invalid if there is none."""

    request: str
