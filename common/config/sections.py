"""The tables of a configuration, each with its keys, their bounds and their meanings."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=1, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]

Policy = Literal[
    "sps2",
    "lars",
    "fcfs",
    "preflow",
    "pecsched",
    "sjf",
    "sarathi",
    "loongserve",
    "distserve",
    "splitwise",
]
Duty = Literal["prefill", "decode"]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file; unknown keys are errors."""


class Scheduler(Section, frozen=True):
    """Who runs what, where, and when."""

    host: Annotated[
        str, Meta(description="address where the others reach it; empty takes the cluster's")
    ] = ""
    bus_port: Annotated[Port, Meta(description="ZeroMQ port")] = 8002
    policy: Annotated[
        Policy,
        Meta(
            description="`sps2`: prompts with little work go first and preempt longer ones; "
            "`lars`: those with the least time left, relative to their length; `fcfs`: first come, "
            "first served; `preflow`, `pecsched`, `sjf`, `distserve`, `splitwise`: after published "
            "ones, for comparison"
        ),
    ] = "sps2"
    prefill_only: Annotated[
        tuple[str, ...],
        Meta(
            description="mixed shards that only prefill at first, as `mixed-0`; `spsctl duty` "
            "changes that"
        ),
    ] = ()
    decode_only: Annotated[
        tuple[str, ...], Meta(description="mixed shards that only decode at first")
    ] = ()
    max_queue: Annotated[
        Positive, Meta(description="requests waiting for room; more are refused with 429")
    ] = 256
    patience_s: Annotated[
        Seconds,
        Meta(
            description="seconds that a request may wait for shards that are not there; then it "
            "is refused with 503"
        ),
    ] = 60.0
    drain_s: Annotated[
        Seconds,
        Meta(
            description="seconds for which a shard that is told to end (SIGTERM) finishes its "
            "requests; then they go on on other shards"
        ),
    ] = 20.0
    prefill_span_tokens: Annotated[
        Positive,
        Meta(description="the SP degree is at most the prompt's length over this, rounded up"),
    ] = 256
    pass_tokens: Annotated[
        int,
        Meta(
            ge=0,
            description="tokens of short prompts that a prefill shard computes at once; a prompt "
            "is short if it has at most an eighth of this; 0: one prompt at a time",
        ),
    ] = 256
    chunk_tokens: Annotated[
        int,
        Meta(
            ge=0,
            description="tokens of a prompt that one shard computes before the scheduler decides "
            "again: longer prompts are computed in chunks, on as many shards as are free then, and "
            "one that was lost goes on behind its last chunk; 0: prompts are computed whole",
        ),
    ] = 0
    decode_span_tokens: Annotated[
        Positive,
        Meta(
            description="KV is spread over decode shards so that one gets about this; mixed "
            "shards spread that of prompts with more than this to compute"
        ),
    ] = 2048

    def __post_init__(self) -> None:
        if both := {*self.prefill_only} & {*self.decode_only}:
            raise ValueError(f"{min(both)} cannot be in both `prefill_only` and `decode_only`")

    @property
    def duties(self) -> dict[str, Duty]:
        """The duties of mixed shards that do not do both at first, by name."""
        duties: dict[str, Duty] = dict.fromkeys(self.prefill_only, "prefill")
        duties.update(dict.fromkeys(self.decode_only, "decode"))
        return duties


class Directory(Section, frozen=True):
    """The KV directory."""

    host: Annotated[
        str, Meta(description="address where the others reach it; empty takes the cluster's")
    ] = ""
    bus_port: Annotated[Port, Meta(description="ZeroMQ port")] = 8003


class Joining(Section, frozen=True):
    """Where other machines join the cluster, with a code of `spsctl invite`."""

    first_port: Annotated[int, Meta(ge=0, le=65533, description="of three; 0: none can join")] = 0
    announce: Annotated[
        bool, Meta(description="by mDNS, so that machines on its network find it where it is now")
    ] = True


class Telemetry(Section, frozen=True):
    """Where heartbeats and events of all services meet (in the scheduler's process)."""

    publish_port: Annotated[Port, Meta(description="ZeroMQ port that services publish to")] = 8004
    subscribe_port: Annotated[Port, Meta(description="ZeroMQ port to subscribe to")] = 8005


class Log(Section, frozen=True):
    """What every process writes to stderr: with `spsctl up`, to its log file."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="lines below it are left out"),
    ] = "info"
    format: Annotated[
        Literal["text", "json"], Meta(description="of a line; json is one object a line")
    ] = "text"


class Tracing(Section, frozen=True):
    """Where the time of each request went: `spsctl trace`."""

    kept: Annotated[
        NotNegative,
        Meta(
            description="requests whose traces every service keeps in memory, the last ones; at "
            "most a quarter of them are of refused requests; 0 keeps none"
        ),
    ] = 128
    otlp_endpoint: Annotated[
        str,
        Meta(
            description="where traces are sent over OTLP/HTTP, such as "
            "http://127.0.0.1:4318/v1/traces; nowhere if empty; needs the extra `otel`"
        ),
    ] = ""
    otlp_share: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="of the requests, those that are sent; one with a `traceparent` is sent "
            "if that is sampled",
        ),
    ] = 1.0


class Bus(Section, frozen=True):
    """The control bus."""

    heartbeat_s: Annotated[Seconds, Meta(description="seconds between heartbeats")] = 1.0
    missed_heartbeats: Annotated[
        Positive, Meta(description="heartbeats missed before a peer is lost")
    ] = 3
    max_message_bytes: Annotated[Positive, Meta(description="larger messages are refused")] = (
        64 << 20
    )
    keys: Annotated[
        str,
        Meta(
            description="folder of `spsctl keys init`, or one key file; none is needed where all "
            "is on loopback. SPS2_KEYS says it where this is absent",
            extra={"environment": "SPS2_KEYS"},
        ),
    ] = ""


class Kv(Section, frozen=True):
    """KV pages of a shard."""

    page_tokens: Annotated[int, Meta(ge=1, le=1024, description="tokens in one page")] = 32
    pool_tokens: Annotated[
        NotNegative,
        Meta(
            description="tokens of KV in one shard's pool, where a request has its prompt "
            "and its answer. 0 sizes it by free memory, but for no more than 16 times the "
            "model's context"
        ),
    ] = 0
    growth_tokens: Annotated[
        NotNegative,
        Meta(
            description="room for this many tokens of an answer is reserved before it begins, and "
            "added as it grows; if there is none left, a request gives its room up and resumes "
            "later. 0 reserves `max_tokens` at once"
        ),
    ] = 256
    dtype: Annotated[
        Literal["auto", "int8"],
        Meta(
            description="of keys and values at rest: auto is the model's, int8 has a scale per "
            "token and KV head and takes about half of bfloat16's room"
        ),
    ] = "auto"
    prefix_cache: Annotated[
        bool, Meta(description="full pages stay for prompts that begin alike, until room is needed")
    ] = True
    disk_folder: Annotated[
        str,
        Meta(
            description="folder on every shard's machine where full pages are kept too, so that "
            "they outlive memory and restarts (docs/kv-disk.md); empty: nowhere"
        ),
    ] = ""
    disk_gib: Annotated[
        float,
        Meta(gt=0, description="GiB of pages on disk that one shard keeps, the last used ones"),
    ] = 16.0

    def __post_init__(self) -> None:
        if self.disk_folder and not self.prefix_cache:
            raise ValueError("`disk_folder` keeps pages of the prefix cache: set `prefix_cache`")
