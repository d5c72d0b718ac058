"""`spsctl up`: brings up a cluster, shows its progress, and stops it with Ctrl-C.

`launch.py` starts the cluster and waits until it is ready.
"""

import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from sps2.cli import addresses, invitation, render, starting
from sps2.cli.effective import effective
from sps2.cli.hosts import load
from sps2.cli.launch import Launch, ServiceDied
from sps2.cli.pull import obtained
from sps2.common.config import Cluster, DeviceName, Dtype, Quantize, Transport, is_loopback
from sps2.common.config.gateway import MOST_GATEWAYS, AccessLog
from sps2.common.config.sections import Policy
from sps2.common.keys import API_KEYS, beside
from sps2.common.keys.keyring import Keyring
from sps2.common.messages import ClusterStatus, Role, Setting
from sps2.common.models import model_id
from sps2.common.transport.encryption import UCX_IN_THE_CLEAR

Text = str | None
Number = int | None


def up(
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration file (TOML); `spsctl config` prints one.", dir_okay=False),
    ] = None,
    hosts: Annotated[
        Path | None,
        typer.Option(
            help="List of machines (TOML) to start the cluster on over ssh.", dir_okay=False
        ),
    ] = None,
    model: Annotated[
        Text,
        typer.Option(help="A model as for `spsctl pull`, or a folder; downloaded if missing."),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(help="What clients call the model; give it again for more names."),
    ] = None,
    prefill: Annotated[Number, typer.Option(min=1, help="Number of prefill shards.")] = None,
    decode: Annotated[Number, typer.Option(min=1, help="Number of decode shards.")] = None,
    mixed: Annotated[
        Number,
        typer.Option("--mixed", min=1, help="Number of shards that both prefill and decode."),
    ] = None,
    gateways: Annotated[
        Number,
        typer.Option(
            min=1, max=MOST_GATEWAYS, help="Number of gateways, which share the HTTP port."
        ),
    ] = None,
    device: Annotated[
        DeviceName | None,
        typer.Option(help="Where shards compute; auto: on GPUs if there are any."),
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Type of weights and activations; auto: the checkpoint's.")
    ] = None,
    quantize: Annotated[
        Quantize | None, typer.Option(help="Type that weights are stored in.")
    ] = None,
    attention: Annotated[
        Setting | None,
        typer.Option(help="How much attention prefill may leave out, unless a request says."),
    ] = None,
    policy: Annotated[
        Policy | None, typer.Option(help="The order in which requests are scheduled.")
    ] = None,
    transport: Annotated[
        Transport | None,
        typer.Option(help="Transport of tensors; auto: UCX where it has RDMA to use."),
    ] = None,
    tp: Annotated[
        Number, typer.Option(min=1, help="Tensor-parallel processes of one shard.")
    ] = None,
    pp: Annotated[
        Number,
        typer.Option(
            min=1,
            help="Pipeline-parallel processes of one shard: they split layers, and may be on "
            "several hosts.",
        ),
    ] = None,
    decode_tp: Annotated[
        Number,
        typer.Option(min=1, help="Tensor-parallel processes of one decode shard, if not as --tp."),
    ] = None,
    access_log: Annotated[
        AccessLog | None, typer.Option(help="HTTP requests that get a line in the gateway's log.")
    ] = None,
    kv_disk: Annotated[
        Text,
        typer.Option(help="Folder where KV is kept too, so that it outlives memory and restarts."),
    ] = None,
    kv_disk_gib: Annotated[
        float | None, typer.Option(min=0.001, help="GiB that one shard keeps there.")
    ] = None,
    threads: Annotated[Number, typer.Option(min=1, help="Compute threads of one process.")] = None,
    host: Annotated[Text, typer.Option(help="Address to bind; needs --keys.")] = None,
    keys: Annotated[
        Text, typer.Option(help="Folder of the keys, made by `spsctl keys init`.")
    ] = None,
    port: Annotated[
        Number,
        typer.Option(
            min=1,
            max=65529,
            help="HTTP port; the next five are used too, with --tp one more for each shard, and "
            "with --gateways those from the sixteenth on.",
        ),
    ] = None,
    name: Annotated[
        Text,
        typer.Option(envvar="SPS2_CLUSTER", help="Name of the cluster; several can be up at once."),
    ] = None,
    invite: Annotated[
        bool,
        typer.Option(
            "--invite",
            help="Let other machines join: prints a code for `spsctl join`. Makes keys and "
            "chooses an address, unless --keys and --host do.",
        ),
    ] = False,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach", "-d", help="Return once the cluster is ready; `spsctl down` stops it."
        ),
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(min=1, help="Seconds within which it must be ready, else it is stopped."),
    ] = 600.0,
) -> None:
    """Start a cluster on this machine, or on the machines of a list.

    Flags override the file. In the foreground it runs until Ctrl-C, which stops the cluster.
    """
    places = load(hosts) if hosts is not None else None
    if places is not None and (prefill or decode or mixed or host):
        raise typer.BadParameter(
            f"{hosts} says how many shards there are and where: leave out --prefill, --decode, "
            "--mixed and --host"
        )
    layout: dict[str, Any] = {"prefill": prefill, "decode": decode, "mixed": mixed}
    layout |= {"host": host, "keys": keys}
    if invite:
        layout |= invitation.settings(config, places, layout, port)
    cluster = effective(
        config,
        places,
        obtained,
        attention=attention,
        policy=policy,
        access_log=access_log,
        processes=gateways,
        disk_folder=kv_disk,
        disk_gib=kv_disk_gib,
        model=model,
        served_model_name=served_model_name or None,
        device=device,
        dtype=dtype,
        quantize=quantize,
        transport=transport,
        tp=tp,
        pp=pp,
        decode_tp=decode_tp,
        threads=threads,
        port=port,
        name=name,
        **layout,
    )
    launch = Launch(cluster, detach, places)
    launch.start()
    for warning in launch.warnings:
        render.note(f"warning: {warning}", "yellow")
    signal.signal(signal.SIGTERM, starting.interrupt)
    keep = False
    try:
        status = starting.shown(
            lambda on_change: launch.until_ready(timeout, on_change), launch.progress
        )
        _welcome(cluster, status, launch.progress.ready_after_s or 0.0, detach)
        if invite:
            invitation.show(cluster)
        keep = detach
        if not detach:
            _stay(launch)
    except ServiceDied as died:
        for line in died.lines:
            render.err.print(line, markup=False, style="dim", soft_wrap=True)
        raise
    finally:
        if not keep:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave processes
            render.err.print(f"stopping {cluster.name} ...")
            launch.stop()
            render.err.print(f"{cluster.name} is stopped")


def _welcome(cluster: Cluster, status: ClusterStatus, ready_s: float, detached: bool) -> None:
    transports = "/".join(sorted({each.transport for each in status.shards if each.transport}))
    option = "" if cluster.name == "default" else f" --name {cluster.name}"
    render.out.print(
        f"\n[bold green]{cluster.name}[/] is ready after {ready_s:.1f} s: {_model(cluster)} "
        f"on {_shards(cluster)}"
        f"{f' over {transports}' if transports else ''}",
        soft_wrap=True,
    )
    for warning in _warnings(cluster, status):
        render.out.print(warning, style="yellow", markup=False, soft_wrap=True)
    first, *others = [cluster.at(address) for address in addresses.of(cluster.host_of("gateway"))]
    rows = [
        ("OpenAI API", f"{first.http_url}/v1    (try it: {first.http_url}/docs)"),
        *(("", f"{other.http_url}/v1") for other in others),
        ("SDK", " ".join(first.gateway_addresses)),
        (
            "next",
            f"spsctl chat{option} | spsctl status{option} | "
            + (f"spsctl down{option}" if detached else f"spsctl logs -f{option}"),
        ),
    ]
    for what, where in rows:
        render.out.print(f"  {what:12}{where}", markup=False, soft_wrap=True)
    if not detached:
        render.out.print("Ctrl-C stops it.")


def _warnings(cluster: Cluster, status: ClusterStatus) -> Iterator[str]:
    """What the operator still has to do for the cluster to be usable and safe."""
    if not (is_loopback(cluster.host_of("gateway")) or cluster.gateway.tls_key):
        yield (
            "HTTP is in the clear, API keys too: set tls_certificate and tls_key in [gateway], or "
            "put a proxy with TLS before it"
        )
    if not cluster.bus.keys:
        return
    exposed = {each.transport for each in status.shards if not is_loopback(_host(each.address))}
    if "ucx" in exposed:
        yield UCX_IN_THE_CLEAR
    elif "tcp" in exposed:
        yield 'Tensors travel in the clear between hosts: `encryption = "off"` in the configuration'
    folder = beside(cluster.bus, API_KEYS).parent
    now = datetime.now(UTC)
    if not any(key.state(now) == "valid" for key in Keyring(folder).api_keys().values()):
        yield (
            "No HTTP request is answered yet: the cluster has keys, and no valid API key. "
            f"`spsctl keys api add NAME --keys {folder}` makes one, which works at once"
        )


def _host(address: str) -> str:
    return address.partition("://")[2].rpartition(":")[0]


def _model(cluster: Cluster) -> str:
    """The model's name, how its weights are stored, and the names for clients."""
    names = " or ".join(cluster.served_model_name)
    called = f" (clients call it {names})" if names else ""
    return f"{model_id(cluster.model)}{render.quantised(cluster.quantize)}{called}"


def _shards(cluster: Cluster) -> str:
    return " and ".join(
        render.counted(cluster.shards_of(role), f"{role} shard")
        + (f" (TP {cluster.tp_of(role)})" if cluster.tp_of(role) > 1 else "")
        + (f" (PP {cluster.pp})" if cluster.pp > 1 else "")
        for role in get_args(Role)
        if cluster.shards_of(role)
    )


def _stay(launch: Launch) -> None:
    """Wait until Ctrl-C, or until the cluster is stopped otherwise; report restarts meanwhile."""
    try:
        while launch.is_up:
            for line in launch.restarts():
                render.note(line, "yellow")
            time.sleep(0.3)
    except KeyboardInterrupt:
        return
    render.err.print("the cluster was stopped by somebody else", style="yellow")
