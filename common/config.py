"""One cluster's configuration: a TOML file, overridden by flags; every knob is documented here."""

import os
import tomllib
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from sps2.common.errors import Invalid
from sps2.common.messages import Role

Port = Annotated[int, Meta(ge=1, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]


def environment_bus() -> "Bus":
    """The bus of a program without a configuration: its keys are those that `$SPS2_KEYS` names."""
    return Bus(keys=os.environ.get("SPS2_KEYS", ""))


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def home() -> Path:
    """Where models, logs and run files live: `$SPS2_HOME`, else `~/.cache/sps2`."""
    return Path(os.environ.get("SPS2_HOME") or Path.home() / ".cache" / "sps2").expanduser()


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file; unknown keys are errors."""


class Gateway(Section, frozen=True):
    """The HTTP and ZeroMQ door of the cluster."""

    host: Annotated[
        str, Meta(description="address where the others reach it; empty takes the cluster's")
    ] = ""
    port: Annotated[Port, Meta(description="HTTP port of the OpenAI-compatible API")] = 8000
    bus_port: Annotated[Port, Meta(description="ZeroMQ port of the SDK and spsctl")] = 8001
    max_body_bytes: Annotated[Positive, Meta(description="largest HTTP body accepted")] = 16 << 20
    max_requests: Annotated[
        Positive, Meta(description="requests in work at once; more are refused with 429")
    ] = 512
    max_choices: Annotated[Positive, Meta(description="largest `n` of one request")] = 16
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
    tls_certificate: Annotated[
        str, Meta(description="PEM file of the certificate and its chain; empty: plain HTTP")
    ] = ""
    tls_key: Annotated[str, Meta(description="PEM file of the certificate's private key")] = ""

    def __post_init__(self) -> None:
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("TLS needs both `tls_certificate` and `tls_key`")


class Scheduler(Section, frozen=True):
    """Who runs what, where, and when."""

    host: Annotated[
        str, Meta(description="address where the others reach it; empty takes the cluster's")
    ] = ""
    bus_port: Annotated[Port, Meta(description="ZeroMQ port")] = 8002
    policy: Annotated[Literal["fcfs"], Meta(description="scheduling policy")] = "fcfs"
    max_queue: Annotated[
        Positive, Meta(description="requests waiting for room; more are refused with 429")
    ] = 256
    prefill_span_tokens: Annotated[
        Positive, Meta(description="the SP degree is the prompt's length over this, rounded up")
    ] = 256
    pass_tokens: Annotated[
        int,
        Meta(
            ge=0,
            description="tokens of short prompts that a prefill shard computes at once; a prompt "
            "is short if it has at most an eighth of this; 0: one prompt at a time",
        ),
    ] = 256
    decode_span_tokens: Annotated[
        Positive, Meta(description="KV is spread over decode shards so that one gets about this")
    ] = 2048


class Directory(Section, frozen=True):
    """The KV directory."""

    host: Annotated[
        str, Meta(description="address where the others reach it; empty takes the cluster's")
    ] = ""
    bus_port: Annotated[Port, Meta(description="ZeroMQ port")] = 8003


class Telemetry(Section, frozen=True):
    """Where beats and events of all services meet (in the scheduler's process)."""

    publish_port: Annotated[Port, Meta(description="ZeroMQ port that services publish to")] = 8004
    subscribe_port: Annotated[Port, Meta(description="ZeroMQ port to subscribe to")] = 8005


class Tracing(Section, frozen=True):
    """Where the time of each request went: `spsctl trace`."""

    kept: Annotated[
        NotNegative,
        Meta(description="requests whose traces every service keeps in memory; 0 keeps none"),
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

    beat_s: Annotated[Seconds, Meta(description="seconds between beats")] = 1.0
    missed_beats: Annotated[Positive, Meta(description="beats missed before a peer is lost")] = 3
    max_message_bytes: Annotated[Positive, Meta(description="larger messages are refused")] = (
        64 << 20
    )
    keys: Annotated[
        str,
        Meta(
            description="folder of `spsctl keys init`, or one key file; none is needed where all "
            "is on loopback. SPS2_KEYS says it where this is absent"
        ),
    ] = ""


class Kv(Section, frozen=True):
    """KV pages of a shard."""

    page_tokens: Annotated[int, Meta(ge=1, le=1024, description="tokens in one page")] = 32
    pool_tokens: Annotated[
        NotNegative,
        Meta(
            description="tokens of KV in one shard's pool, where a request reserves its prompt "
            "and its `max_tokens`; 0 sizes it by free memory"
        ),
    ] = 0
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


class Sharing(Section, frozen=True):
    """How prefill shards share one prompt's attention."""

    method: Annotated[
        Literal["auto", "ring", "gather", "ulysses", "usp", "pass_q"],
        Meta(description="of exact attention; auto predicts which is the fastest"),
    ] = "auto"
    wire: Annotated[
        Literal["plain", "int8"],
        Meta(description="keys and values between prefill shards, for exact attention"),
    ] = "plain"
    pipelined: Annotated[
        bool, Meta(description="transfers beside arithmetic; false is there to be compared with")
    ] = True
    link_gbit: Annotated[
        float, Meta(gt=0, description="Gbit/s of one shard's link, each way, for predictions")
    ] = 10.0
    link_latency_s: Annotated[
        float, Meta(ge=0, description="seconds from shard to shard, for predictions")
    ] = 0.0002
    gflops: Annotated[
        float, Meta(gt=0, description="GFLOP/s of one shard's matrix products, for predictions")
    ] = 300.0
    attention_rate: Annotated[
        float, Meta(gt=0, description="speed of attention against that, for predictions")
    ] = 0.75


class Cluster(Section, frozen=True):
    """The whole file."""

    name: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]+$", description="of this cluster")] = (
        "default"
    )
    model: Annotated[str, Meta(description="as given to `spsctl pull`, or a folder")] = (
        "smollm2-135m"
    )
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        Meta(description="of weights, activations and KV; auto takes the checkpoint's"),
    ] = "auto"
    quantize: Annotated[
        Literal["none", "int8", "int4"],
        Meta(
            description="weights of layers and head; int4 takes 8 bits for the head. Made at the "
            "first start and kept beside the model"
        ),
    ] = "none"
    max_context: Annotated[
        NotNegative, Meta(description="tokens of prompt and answer; 0 takes the model's limit")
    ] = 0
    host: Annotated[
        str, Meta(description="address of every service that has none of its own, on one host")
    ] = "127.0.0.1"
    prefill: Annotated[NotNegative, Meta(description="prefill shards")] = 1
    decode: Annotated[NotNegative, Meta(description="decode shards")] = 1
    any: Annotated[
        NotNegative,
        Meta(
            description="shards that do both and keep what they compute, in place of prefill and "
            "decode shards, which are 0 then"
        ),
    ] = 0
    tp: Annotated[
        Positive, Meta(description="processes of one shard, which split heads, MLP and vocabulary")
    ] = 1
    decode_tp: Annotated[
        NotNegative, Meta(description="the same for decode shards alone; 0 takes tp")
    ] = 0
    meeting_port: Annotated[
        Port,
        Meta(description="where the processes of the first shard meet; others take those after it"),
    ] = 8006
    shard_port: Annotated[
        int,
        Meta(
            ge=0,
            le=65535,
            description="first port of the shards' processes, which take two each, for bus and "
            "data plane, in the order of `spsctl status`; 0: any that are free",
        ),
    ] = 0
    threads: Annotated[
        NotNegative,
        Meta(description="compute threads of one process of a shard; 0 shares the cores out"),
    ] = 0
    transport: Annotated[
        Literal["auto", "ucx", "tcp"],
        Meta(description="data plane; auto takes UCX where it has RDMA or CUDA to use"),
    ] = "auto"
    attention: Annotated[
        Literal["exact", "balanced", "fast"],
        Meta(description="exact, or how much CSA may leave out, unless a request says"),
    ] = "exact"
    gateway: Gateway = Gateway()
    scheduler: Scheduler = Scheduler()
    sharing: Sharing = Sharing()
    kvdir: Directory = Directory()
    telemetry: Telemetry = Telemetry()
    tracing: Tracing = Tracing()
    bus: Bus = Bus()
    kv: Kv = Kv()

    def __post_init__(self) -> None:
        if not self.any:
            if not (self.prefill and self.decode):
                raise ValueError("there must be prefill and decode shards, or shards that do both")
            return
        if self.prefill or self.decode:
            raise ValueError(
                f"`any` shards are for prefill and decoding: besides {self.any} of them there can "
                f"be no others, here {self.prefill} prefill and {self.decode} decode shards"
            )
        if self.tp > 1 or self.decode_tp > 1:
            raise ValueError("`any` shards have one process: leave out `tp` and `decode_tp`")
        if self.sharing.method in ("ring", "usp"):
            raise ValueError(
                f"`any` shards keep the keys and values of one span; {self.sharing.method} deals "
                "each of them two: take another sharing.method, or prefill and decode shards"
            )

    @property
    def shard_threads(self) -> int:
        """Threads of one process: prefill and decode shards take turns on the same cores."""
        cores = len(os.sched_getaffinity(0))
        processes = max(self.shards_of(role) * self.tp_of(role) for role in get_args(Role))
        return self.threads or max(1, cores // processes)

    def shards_of(self, role: Role) -> int:
        """How many shards of a role there are."""
        return {"prefill": self.prefill, "decode": self.decode, "any": self.any}[role]

    def tp_of(self, role: Role) -> int:
        """Processes of one shard."""
        return self.decode_tp or self.tp if role == "decode" else self.tp

    def meeting_port_of(self, role: Role, index: int) -> int:
        """Where the processes of one shard meet."""
        return self.meeting_port + index + (self.prefill if role == "decode" else 0)

    def shard_ports_of(self, role: Role, index: int, rank: int) -> tuple[int, int]:
        """What a process of a shard binds, for the bus and for the data plane; 0 is any port."""
        if not self.shard_port:
            return 0, 0
        before = self.prefill * self.tp_of("prefill") if role == "decode" else 0
        first = self.shard_port + 2 * (before + index * self.tp_of(role) + rank)
        return first, first + 1

    def require_keys(self, host: str) -> None:
        """Check that a service may bind `host`. Invalid if others could reach it without keys."""
        if not self.bus.keys and not is_loopback(host):
            raise Invalid(
                f"{host} can be reached from other machines, and the cluster has no keys: run "
                f"`spsctl keys init`, then `spsctl up --host {host} --keys {home() / 'keys'}` (in "
                "a configuration: `keys` in [bus])"
            )

    def host_of(self, service: str) -> str:
        """Where the gateway, the scheduler or the KV directory ("kvdir") is reached."""
        section: Gateway | Scheduler | Directory = getattr(self, service)
        return section.host or self.host

    @property
    def http_url(self) -> str:
        scheme = "https" if self.gateway.tls_key else "http"
        return f"{scheme}://{self.host_of('gateway')}:{self.gateway.port}"

    @property
    def gateway_address(self) -> str:
        return f"tcp://{self.host_of('gateway')}:{self.gateway.bus_port}"

    @property
    def scheduler_address(self) -> str:
        return f"tcp://{self.host_of('scheduler')}:{self.scheduler.bus_port}"

    @property
    def kvdir_address(self) -> str:
        return f"tcp://{self.host_of('kvdir')}:{self.kvdir.bus_port}"

    @property
    def publish_address(self) -> str:
        return f"tcp://{self.host_of('scheduler')}:{self.telemetry.publish_port}"

    @property
    def subscribe_address(self) -> str:
        return f"tcp://{self.host_of('scheduler')}:{self.telemetry.subscribe_port}"


def load(path: Path | None = None, **flags: Any) -> Cluster:
    """Read a configuration file; `flags` that are not None override its top-level keys.

    `keys` sets the bus's; `port` sets the HTTP port and moves the other ports after it, unless the
    file names them. With `any` shards there are no prefill and decode shards unless either says so.

    Raises:
        Invalid: the file is missing or not TOML, a key is unknown, or a value is out of range.
    """
    tables: dict[str, Any] = {}
    if path is not None:
        try:
            tables = tomllib.loads(path.read_text())
        except OSError as error:
            raise Invalid(f"cannot read the configuration {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Invalid(f"{path} is not valid TOML: {error}") from error
    port = flags.pop("port", None)
    if keys := flags.pop("keys", None) or tables.get("bus", {}).get("keys", environment_bus().keys):
        tables["bus"] = tables.get("bus", {}) | {"keys": keys}
    tables |= {name: value for name, value in flags.items() if value is not None}
    if port is not None:
        tables = _with_ports(tables, port)
    if tables.get("any"):
        tables = {"prefill": 0, "decode": 0} | tables
    try:
        return msgspec.convert(tables, Cluster)
    except msgspec.ValidationError as error:
        where = path or "the command line"
        raise Invalid(
            f"{where}: {error}; `spsctl config` prints every key with its meaning"
        ) from error


def _with_ports(tables: dict[str, Any], port: int) -> dict[str, Any]:
    places = [
        ("gateway", "port"),
        ("gateway", "bus_port"),
        ("scheduler", "bus_port"),
        ("kvdir", "bus_port"),
        ("telemetry", "publish_port"),
        ("telemetry", "subscribe_port"),
    ]
    tables = {
        name: dict(value) if isinstance(value, dict) else value for name, value in tables.items()
    }
    for offset, (section, key) in enumerate(places):
        table = tables.setdefault(section, {})
        if (section, key) == ("gateway", "port"):
            table[key] = port
        else:
            table.setdefault(key, port + offset)
    tables.setdefault("meeting_port", port + len(places))
    return tables
