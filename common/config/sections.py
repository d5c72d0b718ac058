"""The tables of a configuration, each with its keys, their bounds and their meanings."""

import re
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
AccessLog = Literal["all", "refused", "none"]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file; unknown keys are errors."""


ToolParser = Literal["auto", "hermes", "qwen3_coder", "llama3", "mistral", "pythonic", "json"]
ReasoningParser = Literal["auto", "think", "mistral", "none"]


MOST_GATEWAYS = 64


class Gateway(Section, frozen=True):
    """The HTTP and ZeroMQ door of the cluster."""

    host: Annotated[
        str, Meta(description="address where the others reach it; empty takes the cluster's")
    ] = ""
    port: Annotated[Port, Meta(description="HTTP port of the OpenAI-compatible API")] = 8000
    bus_port: Annotated[Port, Meta(description="ZeroMQ port of the SDK and spsctl")] = 8001
    processes: Annotated[
        int,
        Meta(
            ge=1,
            le=MOST_GATEWAYS,
            description="gateways that share the HTTP port, on one machine: while one is away, the "
            "others answer",
        ),
    ] = 1
    second_bus_port: Annotated[
        Port,
        Meta(description="ZeroMQ port of the second gateway of several; the others take the next"),
    ] = 8016
    drain_s: Annotated[
        Seconds,
        Meta(
            description="seconds that running answers may still take after SIGTERM, while the "
            "cluster serves; new requests go to the other gateways meanwhile"
        ),
    ] = 30.0
    max_body_bytes: Annotated[Positive, Meta(description="largest HTTP body accepted")] = 16 << 20
    max_bodies_bytes: Annotated[
        Positive,
        Meta(
            description="HTTP bodies in memory at once, without those up to 64 KiB; what is over "
            "it is refused with 429"
        ),
    ] = 64 << 20
    max_requests: Annotated[
        Positive, Meta(description="requests in work at once; more are refused with 429")
    ] = 512
    default_max_tokens: Annotated[
        NotNegative,
        Meta(
            description="tokens of an answer to a chat without `max_tokens`; 0: as many as the "
            "context and a KV pool allow"
        ),
    ] = 0
    max_choices: Annotated[Positive, Meta(description="largest `n` of one request")] = 16
    sampling_defaults: Annotated[
        Literal["model", "openai"],
        Meta(
            description="what temperature, top_p and the like are where a request leaves them "
            "out: as the model's generation_config.json recommends, or OpenAI's (temperature 1)"
        ),
    ] = "model"
    tool_parser: Annotated[
        ToolParser,
        Meta(
            description="the form in which the model writes calls of functions; auto: that of its "
            "chat template"
        ),
    ] = "auto"
    reasoning_parser: Annotated[
        ReasoningParser,
        Meta(
            description="the tags between which the model writes its thoughts: `<think>`, or "
            "Mistral's `[THINK]`; auto: those of its chat template"
        ),
    ] = "auto"
    stored_responses_bytes: Annotated[
        NotNegative,
        Meta(
            description="memory for responses of /v1/responses, which are kept for clients that "
            "go on from them; the oldest make room; 0 keeps none"
        ),
    ] = 64 << 20
    stored_responses_s: Annotated[
        Seconds, Meta(description="seconds for which such a response is kept at most")
    ] = 86_400.0
    max_header_bytes: Annotated[
        Positive, Meta(description="largest head of an HTTP request accepted")
    ] = 64 << 10
    max_connections: Annotated[
        Positive, Meta(description="HTTP connections at once; more are refused with 503")
    ] = 2048
    receive_s: Annotated[
        Seconds,
        Meta(description="seconds that the head of an HTTP request may take, and again its body"),
    ] = 60.0
    send_s: Annotated[
        Seconds,
        Meta(
            description="seconds after which a client that takes nothing of its answer, over HTTP "
            "or the bus, is disconnected, and its request cancelled"
        ),
    ] = 30.0
    access_log: Annotated[
        AccessLog,
        Meta(
            description="HTTP requests that get a line in the gateway's log; of /health, /ready "
            "and /metrics only `all` has any"
        ),
    ] = "refused"
    allowed_hosts: Annotated[
        tuple[str, ...],
        Meta(
            description="names by which clients may ask (`Host`, `Origin`), besides addresses, "
            "localhost and `host`, where there are no keys; `*` is any. For a proxy in front"
        ),
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...],
        Meta(
            description="sites whose pages may use the gateway from a browser (CORS), as "
            "`https://chat.example`; `*` is any, empty none"
        ),
    ] = ()
    files_bytes: Annotated[
        NotNegative,
        Meta(
            description="disk for the files of `/v1/files` and the answers of batches, for two "
            "days or until the gateway ends; a file has at most a quarter, an API key half. 0: "
            "there are no files and batches"
        ),
    ] = 256 << 20
    batch_requests: Annotated[Positive, Meta(description="requests of batches in work at once")] = 8
    tls_certificate: Annotated[
        str, Meta(description="PEM file of the certificate and its chain; empty: plain HTTP")
    ] = ""
    tls_key: Annotated[str, Meta(description="PEM file of the certificate's private key")] = ""

    def __post_init__(self) -> None:
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("TLS needs both `tls_certificate` and `tls_key`")
        if self.second_bus_port + self.processes - 2 > 65535:
            raise ValueError(
                f"`second_bus_port` {self.second_bus_port} leaves no ports for "
                f"{self.processes} gateways"
            )
        for each in self.cors_origins:
            if each != "*" and not re.fullmatch(r"https?://[^/\s]+", each):
                raise ValueError(
                    f"`cors_origins` has {each!r}; give scheme and host, as https://chat.example"
                )


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
