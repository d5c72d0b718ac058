"""The host list of `spsctl up --hosts`: which machine runs what, and how to reach it."""

import ipaddress
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from sps2.cli.services import service_names
from sps2.common.bus.telemetry import role_of
from sps2.common.config import Cluster
from sps2.common.config.explained import explained
from sps2.common.config.sections import NotNegative, Section
from sps2.common.errors import Invalid
from sps2.common.messages import Role
from sps2.common.validation import MALFORMED

Control = Literal["gateway", "scheduler", "kvdir"]


class Host(Section, frozen=True):
    """One machine."""

    name: Annotated[
        str,
        Meta(pattern=r"^[^-\s]\S*$", extra={"form": "must have no blanks, and not begin with -"}),
    ]
    """The host for ssh: a name, an address, or USER@HOST."""
    address: Annotated[str, Meta(min_length=1)]
    """The address where other hosts reach it, which its services bind."""
    bind: str = ""
    """The address that its gateway, scheduler and KV directory bind instead, e.g. 0.0.0.0."""
    services: tuple[Control, ...] = ()
    """Which of the three run here; the first host runs those that no host names."""
    prefill: NotNegative = 0
    decode: NotNegative = 0
    mixed: NotNegative = 0
    python: str = ""
    """The Python on the host that has SPS2; empty: the list's."""
    home: str = ""
    """SPS2_HOME on the host; empty: the list's."""
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    """Environment variables of its services, for example UCX_NET_DEVICES."""

    def shards_of(self, role: Role) -> int:
        """How many shards of a role run here; of a pipeline-parallel cluster, how many stages."""
        return {"prefill": self.prefill, "decode": self.decode, "mixed": self.mixed}[role]


class Hosts(Section, frozen=True):
    """The whole file."""

    hosts: tuple[Host, ...]
    ssh: str = "ssh"
    """The command that reaches a host, for example `ssh -J gate.example.org`."""
    python: str = "python3"
    home: str = ""

    def shards(self, pp: int = 1) -> dict[str, int]:
        """The number of shards by role, on all hosts, without roles that have none.

        Args:
            pp: stages of each shard.

        Raises:
            Invalid: a shard lacks stages; the message says how many.
        """
        counts = {}
        for role in get_args(Role):
            stages = sum(host.shards_of(role) for host in self.hosts)
            if stages % pp:
                raise Invalid(
                    f"the hosts have {stages} {role} stages, and each shard takes {pp} (`pp`): "
                    f"list {pp - stages % pp} more, or {stages % pp} fewer"
                )
            if stages:
                counts[role] = stages // pp
        return counts

    def places(self, cluster: Cluster) -> dict[str, Host]:
        """The host of each service of a cluster, by name; shards are assigned in order."""
        made = {}
        for name in service_names(cluster):
            role = role_of(name)
            made[name] = (
                self._assigned(role)[_place(name, cluster)] if "-" in name else self.has(role)
            )
        return made

    def shards_at(self, host: Host, cluster: Cluster) -> tuple[str, ...]:
        """The processes of shards that are to run on a host."""
        found = []
        for name in cluster.shard_names():
            place = _place(name, cluster)
            found += [name] if self._assigned(role_of(name))[place : place + 1] == [host] else []
        return tuple(found)

    def _assigned(self, role: str) -> list[Host]:
        """The host of each shard of a role, or of each stage."""
        return [host for host in self.hosts for _ in range(getattr(host, role))]

    def has(self, service: str) -> Host:
        """The host of the gateway, the scheduler or the KV directory."""
        return next((host for host in self.hosts if service in host.services), self.hosts[0])

    def addresses(self) -> list[str]:
        """All addresses that services bind."""
        return [place for host in self.hosts for place in (host.address, host.bind) if place]

    def addressed(self, cluster: Cluster) -> Cluster:
        """A copy of the configuration with the services' addresses on these hosts."""
        return replace(
            cluster,
            host=self.has("gateway").address,
            gateway=replace(cluster.gateway, host=self.has("gateway").address),
            scheduler=replace(cluster.scheduler, host=self.has("scheduler").address),
            kvdir=replace(cluster.kvdir, host=self.has("kvdir").address),
        )


def load(path: Path) -> Hosts:
    """Read a host list.

    Raises:
        Invalid: the file is missing or not TOML, or a host is wrong: the message names it.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Invalid(f"cannot read the host list {path}: {error.strerror}") from error
    except MALFORMED as error:
        raise Invalid(f"{path} is not valid TOML: {error}") from error
    try:
        hosts = msgspec.convert(tables, Hosts)
    except msgspec.ValidationError as error:
        raise Invalid(f"{path}: {_explained(error, tables)}") from error
    if problem := _problem(hosts):
        raise Invalid(f"{path}: {problem}")
    return hosts


def _place(process: str, cluster: Cluster) -> int:
    """The number of a process's shard among those of its role, or of its stage."""
    shard, _, rank = process.partition("-")[2].partition(".")
    return int(shard) * cluster.pp + (int(rank or 0) if cluster.pp > 1 else 0)


def _problem(hosts: Hosts) -> str:
    """What is wrong with the list as a whole, or ""."""
    if not hosts.hosts:
        return "there is no [[hosts]] in it"
    for key in ("name", "address"):
        value, times = Counter(getattr(host, key) for host in hosts.hosts).most_common(1)[0]
        if times > 1:
            return f"{times} hosts have the {key} {value!r}; one host can have several shards"
    control = Counter(service for host in hosts.hosts for service in host.services)
    for service, times in control.items():
        if times > 1:
            return f"{times} hosts have the {service}; a cluster has one"
    for host in hosts.hosts:
        if len(hosts.hosts) > 1 and _is_loopback(host.address):
            return f"host {host.name!r}: the others cannot reach it at {host.address}"
        if not any(host.shards_of(role) for role in get_args(Role)) and host not in map(
            hosts.has, get_args(Control)
        ):
            return f"host {host.name!r} runs nothing: give it shards, or leave it out"
    return ""


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _explained(error: msgspec.ValidationError, tables: dict[str, Any]) -> str:
    """The validation error in words, with the host that it is in."""
    text = explained(error, Hosts).replace("`hosts.", "`")
    if place := re.search(r"\$\.hosts\[(\d+)\]", str(error)):
        host = tables["hosts"][int(place[1])]
        name = host.get("name") if isinstance(host, dict) else None
        return f"host {name or int(place[1]) + 1!r}: {text}"
    return text
