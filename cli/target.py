"""The cluster that a command talks to."""

import socket
from pathlib import Path
from typing import Annotated

import typer

from sps2.cli import completion, runs
from sps2.common import config
from sps2.common.config import Cluster
from sps2.common.errors import Refused

NameOption = Annotated[
    str | None,
    typer.Option(
        "--name",
        envvar="SPS2_CLUSTER",
        help="Name of the cluster; not needed while only one is up.",
        autocompletion=completion.clusters,
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Talk to the cluster of this file, here or elsewhere."),
]


def cluster_of(name: str | None, file: Path | None) -> Cluster:
    """The configuration in `file`, or of the running cluster. Raises Invalid as `runs.choose`."""
    return config.load(file) if file is not None else runs.choose(name).cluster()


def reachable(name: str | None, file: Path | None) -> Cluster:
    """As `cluster_of`, but checks the gateway. Raises Refused if it does not answer."""
    cluster = cluster_of(name, file)
    problem = OSError("it has no address")
    for number in range(cluster.gateway.processes):
        try:
            gateway = (cluster.host_of("gateway"), cluster.gateway_port_of(number))
            socket.create_connection(gateway, timeout=2.0).close()
            return cluster
        except OSError as error:
            problem = error
    raise Refused(
        f"the gateway at {cluster.gateway_place} does not answer ({problem.strerror or problem})"
        "; see `spsctl status`"
    )
