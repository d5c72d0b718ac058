"""`spsctl invite`: codes with which other machines join a cluster; `up --invite` prints one too."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
import typer

from sps2.cli import addresses, ports, render
from sps2.cli.hosts import Hosts
from sps2.cli.keys.api import parse_expiry
from sps2.cli.runs import RunFolder
from sps2.cli.target import ConfigOption, NameOption, cluster_of
from sps2.common import config as configuration
from sps2.common import keys, places
from sps2.common.bus.addresses import address_of
from sps2.common.config import Cluster, is_loopback
from sps2.common.errors import Invalid
from sps2.common.keys.invites import Invitations
from sps2.common.keys.join_code import JoinCode, encode, fingerprint
from sps2.common.keys.keyring import Keyring
from sps2.common.messages import Role
from sps2.services.joining import mdns

LIFETIME, JOINS = timedelta(hours=1), 16
"""Of the code that `spsctl up --invite` prints."""


def invite(
    expires: Annotated[
        str, typer.Option("--expires", help="When the code expires: 90d, 12h or 30m from now.")
    ] = "1h",
    joins: Annotated[
        int, typer.Option("--joins", min=1, max=1024, help="How many machines may join with it.")
    ] = JOINS,
    listed: Annotated[
        bool, typer.Option("--list", help="List the codes of the last day, without secrets.")
    ] = False,
    revoke: Annotated[
        str | None,
        typer.Option(
            "--revoke", help="Let nobody join any more with this code; its name in --list."
        ),
    ] = None,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Print a code with which other machines join the running cluster.

    Whoever joins gets the cluster's key. Revoking a code does not put out those that have joined.
    """
    cluster = cluster_of(name, config)
    _require_open(cluster, config)
    invitations = _invitations(cluster)
    if revoke is not None:
        invitations.revoke(revoke)
        render.out.print(f"Nobody can join with code {revoke} any more.", markup=False)
    elif listed:
        _list(invitations)
    else:
        now = datetime.now(UTC)
        show(cluster, parse_expiry(expires, now) - now, joins)


def settings(
    file: Path | None,
    hosts: Hosts | None,
    flags: Mapping[str, Any],
    port: int | None,
) -> dict[str, Any]:
    """What `up --invite` sets in a configuration: host, keys, shards, and the port to join at.

    Keys are made if there are none.

    Args:
        flags: the command line's shards by role, `host` and `keys`; None where it has none.
        port: of HTTP, likewise.

    Raises:
        Invalid: other machines could not reach the cluster, or it has a host list.
    """
    if hosts is not None:
        raise Invalid("--hosts says which machines there are: leave out --invite")
    counts = {} if file or any(flags[role] for role in get_args(Role)) else {"mixed": 1}
    base = configuration.load(file, **{**flags, **counts, "port": port})
    host = flags["host"] or _address(base.host)
    if host in addresses.EVERY:
        raise Invalid(
            f"{host} is no address that others could ask for: give --host one of this machine's "
            f"({', '.join(addresses.reachable()) or 'it has none'})"
        )
    beside = base.gateway.port + ports.JOINING_OFFSET
    return {
        **counts,
        "host": host,
        "keys": base.bus.keys or _made_keys(base.name),
        "joining": msgspec.to_builtins(base.joining)
        | {"first_port": base.joining.first_port or beside},
    }


def show(cluster: Cluster, lifetime: timedelta = LIFETIME, joins: int = JOINS) -> None:
    """Invite to a cluster, and print the code."""
    key = keys.cluster_key(cluster.bus)
    assert key is not None
    name, secret = _invitations(cluster).add(lifetime, joins)
    host = address_of(cluster.host_of("joining"))
    code = encode(JoinCode(host, cluster.joining.first_port, secret, fingerprint(key.public)))
    until = (datetime.now(UTC) + lifetime).astimezone()
    render.out.print(f"\n  spsctl join {code}\n", style="bold", markup=False, soft_wrap=True)
    machines = render.counted(joins, "machine")
    why = "`announce` is false in [joining]" if not cluster.joining.announce else mdns.missing()
    found = (
        f"The cluster is not announced by mDNS: {why}."
        if why
        else "It is announced on this network by mDNS, should its address change."
    )
    render.out.print(
        f"on any other machine that has this version of SPS2. The code is for {machines}, until "
        f"{until:%Y-%m-%d %H:%M}. Whoever has it can read and answer everything here: keep it "
        f"secret (`spsctl invite --revoke {name}` ends it). {found}",
        markup=False,
        soft_wrap=True,
    )


def _address(host: str) -> str:
    """The address of a cluster that would be on loopback; another stays."""
    if not is_loopback(host):
        return host
    found = addresses.reachable()
    if not found:
        raise Invalid(
            "this machine has no address where others could reach it: connect it to a network, or "
            "name an address with --host"
        )
    if len(found) > 1:
        render.note(f"others reach this machine at {found[0]}; --host takes {', '.join(found[1:])}")
    return found[0]


def _made_keys(cluster: str) -> str:
    """The usual folder of keys, where one is made if there is none."""
    ring = Keyring(places.keys())
    if not ring.cluster.exists():
        ring.make(cluster)
        render.note(f"made the cluster's key in {ring.folder}")
    return str(ring.folder)


def _require_open(cluster: Cluster, config: Path | None) -> None:
    """Raise Invalid if no machine can join a cluster from here."""
    folder = RunFolder(cluster.name)
    if config is None and folder.joined() is not None:
        raise Invalid(
            f"this machine has joined {cluster.name} itself: codes are made on the machine where "
            "`spsctl up` runs"
        )
    if not cluster.joining.first_port:
        raise Invalid(
            f"no machine can join {cluster.name}: start it with `spsctl up --invite`, or with a "
            "`first_port` in [joining], keys, and a host that others reach"
        )


def _invitations(cluster: Cluster) -> Invitations:
    return Invitations(keys.beside(cluster.bus, keys.CLUSTER).parent)


def _list(invitations: Invitations) -> None:
    now = datetime.now(UTC)
    table = render.table("CODE", "STATE", ">JOINED", "EXPIRES")
    for name, each in invitations.all().items():
        state = each.obstacle(now).removeprefix("the code ").partition(":")[0] or "valid"
        expires = each.expires.astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(name, state, f"{len(each.machines)} of {each.joins}", expires)
    render.show(table)
