"""`spsctl join`: this machine becomes a part of a running cluster, until Ctrl-C."""

import asyncio
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Annotated

import typer

from sps2.cli import ports, render, starting
from sps2.cli.join import entrance, here, model
from sps2.cli.join.here import Here
from sps2.cli.launch import ServiceDied
from sps2.cli.pull import shown
from sps2.common.config import DeviceName
from sps2.common.errors import Invalid, Refused
from sps2.common.keys import join_code
from sps2.common.messages import Admission, JoinCluster
from sps2.common.messages.schema import schema_hash
from sps2.services.compatibility import VERSION, apart
from sps2.services.joining import mdns

WATCH_S = 4.0
WAY_BACK_S = 1.0


def join(
    text: Annotated[
        str | None,
        typer.Argument(
            help="The code that `spsctl up --invite` or `spsctl invite` printed. If left out, the "
            "clusters found by mDNS are listed, and the code is asked for: so it is in no list of "
            "processes.",
            metavar="CODE",
        ),
    ] = None,
    prefill: Annotated[int, typer.Option(min=0, help="Number of prefill shards.")] = 0,
    decode: Annotated[int, typer.Option(min=0, help="Number of decode shards.")] = 0,
    mixed: Annotated[
        int, typer.Option(min=0, help="Number of shards that both prefill and decode.")
    ] = 0,
    device: Annotated[
        DeviceName | None, typer.Option(help="Where shards compute; else as in the cluster.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Compute threads of one process; else all cores.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address of this machine to bind; else the one on the way there."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the cluster on this machine; else its own.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds within which the shards must be in.")
    ] = 600.0,
) -> None:
    """Run shards of a cluster that was started on another machine, until Ctrl-C.

    Where nobody answers at the code's address, the cluster is looked for on this network by mDNS.
    The cluster gives its configuration, its key and, unless it is here, its model. Without counts
    this machine runs one shard, of the role that the cluster has less of. On Ctrl-C the shards
    finish what they do, or, after a second Ctrl-C, leave it to others.
    """
    signal.signal(signal.SIGTERM, starting.interrupt)
    if host is not None and not ports.is_own(host):
        raise Invalid(f"{host} is not an address of this machine (--host)")
    code = join_code.decode(text or _asked())
    found = entrance.find(code)
    with here.claimed(name or found.hello.name) as folder:
        machine = here.machine_id(folder)
        request = JoinCluster(code.secret, machine, socket.gethostname(), prefill, decode, mixed)
        admission = asyncio.run(entrance.admitted(found, request))
        cluster = here.received(folder, admission)
        try:
            _note_clock(admission)
            with shown() as progress:
                path = model.obtained(admission, cluster, progress)
            own = here.configured(cluster, folder.name, path, admission.shards, device, threads)
            shards = Here(own, folder, admission.shards, host or found.own_address)
            _run(shards, timeout)
        finally:
            asyncio.run(here.leave(cluster, machine))
            here.forget(folder)


def _asked() -> str:
    _show_clusters()
    if sys.stdin.isatty():
        return str(typer.prompt("Code", err=True))
    return sys.stdin.readline()


def _show_clusters() -> None:
    """Say which clusters are announced on this network."""
    try:
        found = asyncio.run(mdns.heard(entrance.SEARCH_S))
    except Refused as why:
        render.note(f"clusters of this network cannot be listed: {why}")
        return
    for hello, address, port in found:
        same = (hello.sps2, hello.schema) == (VERSION, schema_hash())
        other = "" if same else f"; this machine has {VERSION}, and needs the cluster's"
        render.note(f"found by mDNS: {hello.name} at {address}:{port}, SPS2 {hello.sps2}{other}")
    if not found:
        render.note("found no cluster on this network by mDNS; a code says where its cluster is")


def _note_clock(admission: Admission) -> None:
    if odd := apart("the cluster", admission.now_s - time.time(), WAY_BACK_S):
        render.note(f"warning: {odd}", "yellow")


def _run(shards: Here, timeout_s: float) -> None:
    """Start the shards, and keep them until Ctrl-C."""
    shards.start()
    try:
        starting.shown(lambda on_change: shards.until_in(timeout_s, on_change), shards.progress)
        names = ", ".join(shards.shards)
        render.out.print(
            f"\nThis machine is in [bold]{shards.cluster.name}[/] with {names} "
            f"({shards.cluster.http_url}). Ctrl-C leaves it.",
            soft_wrap=True,
        )
        _stay(shards)
        _drain(shards)
    except ServiceDied as died:
        for line in died.lines:
            render.err.print(line, markup=False, style="dim", soft_wrap=True)
        raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # another Ctrl-C must not leave processes
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        shards.stop()
        render.note(f"this machine has left {shards.cluster.name}")


def _stay(shards: Here) -> None:
    """Wait until Ctrl-C, or until the shards are stopped otherwise; report what changes."""
    try:
        asyncio.run(_watch(shards))
    except KeyboardInterrupt:
        return
    render.note("the shards were stopped by somebody else", "yellow")


async def _watch(shards: Here) -> None:
    problem = ""
    while shards.is_up:
        for line in shards.restarts():
            render.note(line, "yellow")
        if (now := await shards.problem()) != problem:
            render.note(now or "the cluster has all of it again", "yellow" if now else None)
            problem = now
        await asyncio.sleep(WATCH_S)


def _drain(shards: Here) -> None:
    """Let the shards finish what they do, until Ctrl-C."""
    render.note("leaving: the shards finish what they do (Ctrl-C leaves it to others)")
    with suppress(KeyboardInterrupt):
        asyncio.run(shards.retire())
