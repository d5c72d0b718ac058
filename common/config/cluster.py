"""The configuration of a cluster: a TOML file, overridden by flags; `sections` has its tables."""

import os
import tomllib
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from sps2.common import machine, places
from sps2.common.config.explained import explained
from sps2.common.config.gateway import Gateway
from sps2.common.config.ports import http_port, with_ports
from sps2.common.config.sections import (
    Bus,
    Directory,
    Joining,
    Kv,
    Log,
    NotNegative,
    Port,
    Positive,
    Scheduler,
    Section,
    Telemetry,
    Tracing,
)
from sps2.common.config.sharing import Sharing
from sps2.common.errors import Invalid
from sps2.common.messages import Role, Setting
from sps2.common.validation import MALFORMED

__all__ = [
    "ENVIRONMENT",
    "Bus",
    "Cluster",
    "Directory",
    "Gateway",
    "Joining",
    "Kv",
    "Log",
    "Scheduler",
    "Sharing",
    "Telemetry",
    "Tracing",
    "environment_bus",
    "is_loopback",
    "load",
]


Dtype = Literal["auto", "bfloat16", "float16", "float32"]
DeviceName = Literal["cpu", "cuda", "auto"]
Quantize = Literal["none", "int8", "int4"]
Transport = Literal["auto", "ucx", "tcp"]
Encryption = Literal["auto", "on", "off"]

ENVIRONMENT = {
    "SPS2_HOME": "one folder for models, keys, run files and logs; where it is not set, models are "
    "in `~/.cache/sps2`, keys in `~/.config/sps2`, run files and logs in `~/.local/state/sps2`, or "
    "where `XDG_CACHE_HOME`, `XDG_CONFIG_HOME` and `XDG_STATE_HOME` say",
    "SPS2_KEYS": "folder or file of keys, where the configuration has no `keys` in `[bus]`; for "
    "`spsctl` and the SDK too",
    "SPS2_CLUSTER": "name of the cluster that `spsctl` means, as `--name` says it",
    "SPS2_CONFIG": "the configuration, for `python -m sps2.services.health`",
}
"""Environment variables, with their meanings."""


def environment_bus() -> Bus:
    """The bus of a program without a configuration; `$SPS2_KEYS` names its keys."""
    return Bus(keys=os.environ.get("SPS2_KEYS", ""))


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Cluster(Section, frozen=True):
    """The whole file."""

    name: Annotated[
        str,
        Meta(
            pattern="^[A-Za-z0-9_-]+$",
            description="of this cluster",
            extra={"form": "may have letters, digits, - and _ only"},
        ),
    ] = "default"
    model: Annotated[str, Meta(description="as given to `spsctl pull`, or a folder")] = (
        "smollm2-135m"
    )
    served_model_name: Annotated[
        tuple[Annotated[str, Meta(min_length=1)], ...],
        Meta(
            description="what clients call the model instead of its own name; of several, answers "
            "have the first"
        ),
    ] = ()
    dtype: Annotated[
        Dtype, Meta(description="of weights, activations and KV; auto takes the checkpoint's")
    ] = "auto"
    device: Annotated[
        DeviceName,
        Meta(
            description="where shards compute; cuda assigns the GPUs of a machine round to its "
            "processes, auto does so where a GPU can be used"
        ),
    ] = "cpu"
    quantize: Annotated[
        Quantize,
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
    mixed: Annotated[
        NotNegative,
        Meta(
            description="shards that do both, in place of prefill and decode shards, which are 0 "
            "then"
        ),
    ] = 0
    tp: Annotated[
        Positive, Meta(description="processes of one shard, which split heads, MLP and vocabulary")
    ] = 1
    decode_tp: Annotated[
        NotNegative, Meta(description="the same for decode shards alone; 0 takes tp")
    ] = 0
    pp: Annotated[
        Positive,
        Meta(
            description="processes of one shard, which split layers and may be on several machines"
        ),
    ] = 1
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
            "data plane, in the order of `spsctl status`; 0: any that are free, and then "
            "`python -m sps2.services.health` cannot ask a shard",
        ),
    ] = 0
    threads: Annotated[
        NotNegative,
        Meta(description="compute threads of one process of a shard; 0 shares the cores out"),
    ] = 0
    transport: Annotated[
        Transport,
        Meta(description="data plane; auto takes UCX where it has RDMA to use"),
    ] = "auto"
    encryption: Annotated[
        Encryption,
        Meta(
            description="of the data plane, by TLS: auto encrypts where there are keys and the "
            "address is not loopback; on encrypts everywhere, and needs keys; UCX cannot"
        ),
    ] = "auto"
    attention: Annotated[
        Setting,
        Meta(description="exact, or how much CSA may leave out, unless a request says"),
    ] = "exact"
    gateway: Gateway = Gateway()
    scheduler: Scheduler = Scheduler()
    sharing: Sharing = Sharing()
    kvdir: Directory = Directory()
    joining: Joining = Joining()
    telemetry: Telemetry = Telemetry()
    tracing: Tracing = Tracing()
    log: Log = Log()
    bus: Bus = Bus()
    kv: Kv = Kv()

    def __post_init__(self) -> None:
        self._check_duties()
        self._check_stages()
        if self.encryption == "on" and self.transport == "ucx":
            raise ValueError("UCX cannot encrypt: set `transport` to tcp, or `encryption` to auto")
        if not self.mixed:
            if not (self.prefill and self.decode):
                raise ValueError("there must be prefill and decode shards, or shards that do both")
            return
        if self.prefill or self.decode:
            raise ValueError(
                f"mixed shards prefill and decode: beside {self.mixed} of them there can be no "
                f"others, and `prefill` is {self.prefill} and `decode` {self.decode} here"
            )
        if self.tp > 1 or self.decode_tp > 1:
            raise ValueError("mixed shards have one process: leave out `tp` and `decode_tp`")
        if self.sharing.method in ("ring", "usp"):
            raise ValueError(
                f"mixed shards keep the keys and values of one span; {self.sharing.method} gives "
                "each of them two: take another sharing.method, or prefill and decode shards"
            )

    def _check_duties(self) -> None:
        mixed = [f"mixed-{index}" for index in range(self.mixed)]
        duties = self.scheduler.duties
        if odd := [shard for shard in duties if shard not in mixed]:
            there = ", ".join(mixed) or "none here"
            raise ValueError(
                f"{odd[0]} has a duty in [scheduler], and is not a mixed shard; those are {there}"
            )
        for duty in ("prefill", "decode"):
            if mixed and all(duties.get(shard) == duty for shard in mixed):
                raise ValueError(f"[scheduler] has all mixed shards only {duty}")

    def _check_stages(self) -> None:
        if self.pp == 1:
            return
        if self.tp > 1 or self.decode_tp > 1:
            raise ValueError("a shard splits layers (`pp`) or heads (`tp`): leave one of them out")
        if self.device != "cpu":
            raise ValueError("shards with `pp` compute on CPUs: set `device` to cpu, or take `tp`")
        if self.kv.disk_folder:
            raise ValueError("shards with `pp` keep no KV on disk: leave out `disk_folder` in [kv]")
        if self.joining.first_port:
            raise ValueError(
                "machines that join with a code run whole shards: with `pp`, name the machines in "
                "a list of hosts (`spsctl up --hosts`)"
            )

    @property
    def shard_threads(self) -> int:
        """Threads of one process. Prefill and decode shards use the same cores alternately."""
        processes = max(self.shards_of(role) * self.processes_of(role) for role in get_args(Role))
        return self.threads or max(1, machine.cores() // processes)

    def shards_of(self, role: Role) -> int:
        """How many shards of a role there are."""
        return {"prefill": self.prefill, "decode": self.decode, "mixed": self.mixed}[role]

    def tp_of(self, role: Role) -> int:
        """Processes of one shard that split heads."""
        return self.decode_tp or self.tp if role == "decode" else self.tp

    def processes_of(self, role: Role) -> int:
        """Processes of one shard: they split heads or layers."""
        return self.pp * self.tp_of(role)

    def meeting_port_of(self, role: Role, index: int) -> int:
        """The port where the processes of one shard meet."""
        return self.meeting_port + index + (self.prefill if role == "decode" else 0)

    def shard_names(self) -> list[str]:
        """The names of all shard processes: the shard's, with `.rank` after it from rank 1 on."""
        return [
            f"{role}-{index}" + (f".{rank}" if rank else "")
            for role in get_args(Role)
            for index in range(self.shards_of(role))
            for rank in range(self.processes_of(role))
        ]

    def number_of(self, role: Role, index: int, rank: int) -> int:
        """The number of a shard process among all of them, in the order of `spsctl status`."""
        before = self.prefill * self.processes_of("prefill") if role == "decode" else 0
        return before + index * self.processes_of(role) + rank

    def shard_ports_of(self, role: Role, index: int, rank: int) -> tuple[int, int]:
        """The ports that a shard process binds, for bus and data plane; 0 is any free port."""
        if not self.shard_port:
            return 0, 0
        first = self.shard_port + 2 * self.number_of(role, index, rank)
        return first, first + 1

    def require_keys(self, host: str) -> None:
        """Raise Invalid if binding `host`, or `encryption`, needs keys, and there are none."""
        if not self.bus.keys and self.encryption == "on":
            raise Invalid("`encryption` is on and needs keys: `spsctl keys init`, then `up --keys`")
        if not self.bus.keys and not is_loopback(host):
            raise Invalid(
                f"{host} can be reached from other machines, and the cluster has no keys: run "
                f"`spsctl keys init`, then `spsctl up --host {host} --keys {places.keys()}` (in "
                "a configuration: `keys` in [bus])"
            )

    def host_of(self, service: str) -> str:
        """The host of a service that is no shard: its own, or else the cluster's."""
        host: str = getattr(getattr(self, service), "host", "")
        return host or self.host

    def at(self, host: str) -> "Cluster":
        """A copy whose gateway is reached at `host`."""
        return replace(self, gateway=replace(self.gateway, host=host))

    @property
    def http_url(self) -> str:
        scheme = "https" if self.gateway.tls_key else "http"
        return f"{scheme}://{self.host_of('gateway')}:{self.gateway.port}"

    def gateway_names(self) -> list[str]:
        """The names of all gateways: from the second on they end in their number."""
        return ["gateway", *(f"gateway.{number}" for number in range(1, self.gateway.processes))]

    def gateway_port_of(self, number: int) -> int:
        """The bus port of a gateway; the first has number 0."""
        gateway = self.gateway
        return gateway.second_bus_port + number - 1 if number else gateway.bus_port

    @property
    def gateway_addresses(self) -> tuple[str, ...]:
        """Where the gateways are on the bus."""
        host = self.host_of("gateway")
        ports = map(self.gateway_port_of, range(self.gateway.processes))
        return tuple(f"tcp://{host}:{port}" for port in ports)

    @property
    def gateway_place(self) -> str:
        """Where the gateways are, in words."""
        return " and ".join(self.gateway_addresses)

    @property
    def gateway_address(self) -> str:
        """Where the first gateway is on the bus."""
        return self.gateway_addresses[0]

    @property
    def scheduler_address(self) -> str:
        return f"tcp://{self.host_of('scheduler')}:{self.scheduler.bus_port}"

    @property
    def kvdir_address(self) -> str:
        return f"tcp://{self.host_of('kvdir')}:{self.kvdir.bus_port}"

    @property
    def joining_address(self) -> str:
        """Where machines that joined are served; the third port of `joining`."""
        return f"tcp://{self.host_of('joining')}:{self.joining.first_port + 2}"

    @property
    def publish_address(self) -> str:
        return f"tcp://{self.host_of('scheduler')}:{self.telemetry.publish_port}"

    @property
    def subscribe_address(self) -> str:
        return f"tcp://{self.host_of('scheduler')}:{self.telemetry.subscribe_port}"


def load(path: Path | None = None, **flags: Any) -> Cluster:
    """Read a configuration file; `flags` that are not None override its top-level keys.

    `keys` sets the bus's keys; `port` sets the HTTP port. The HTTP port, whether from a flag or the
    file, moves the other ports that the file does not name. With mixed shards the numbers of
    prefill and decode shards default to 0.

    Raises:
        Invalid: the file is missing or not TOML, a key is unknown, or a value is out of range.
    """
    tables: dict[str, Any] = {}
    if path is not None:
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise Invalid(f"cannot read the configuration {path}: {error.strerror}") from error
        except MALFORMED as error:
            raise Invalid(f"{path} is not valid TOML: {error}") from error
    port, keys = flags.pop("port", None) or http_port(tables), flags.pop("keys", None)
    tables |= {name: value for name, value in flags.items() if value is not None}
    tables = _with_keys(tables, keys)
    if port is not None:
        tables = with_ports(tables, port)
    if tables.get("mixed"):
        tables = {"prefill": 0, "decode": 0} | tables
    try:
        return msgspec.convert(tables, Cluster)
    except msgspec.ValidationError as error:
        where = path or "the command line"
        raise Invalid(
            f"{where}: {explained(error, Cluster)} (`spsctl config` prints every key with its "
            "meaning)"
        ) from error


def _with_keys(tables: dict[str, Any], keys: str | None) -> dict[str, Any]:
    bus = tables.get("bus", {})
    if not isinstance(bus, dict):  # `load` refuses it, as every value of a wrong type
        return tables
    found = keys or bus.get("keys", environment_bus().keys)
    return tables | {"bus": bus | {"keys": found}} if found else tables
