"""A cluster within a `with` block, for examples, benchmarks and tests."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sps2.cli import launch, ports
from sps2.cli.effective import effective
from sps2.common.client import Client


@contextmanager
def running_cluster(
    *, name: str = "embedded", port: int | None = None, timeout_s: float = 300.0, **flags: Any
) -> Iterator[Client]:
    """Bring up a cluster on this machine and yield a client; the cluster ends with the block.

    Args:
        port: of HTTP, followed by the other ports; None chooses free ports.
        flags: top-level keys of the configuration, for example `prefill=2`.

    Raises:
        ServiceError: the model was not pulled, a port is in use, or a service died at start.
    """
    port = ports.free_base() if port is None else port
    cluster = effective(None, port=port, name=name, **flags)
    started = launch.Launch(cluster)
    started.start()
    try:
        asyncio.run(started.until_ready(timeout_s))
        with Client(cluster.gateway_addresses, cluster.bus) as client:
            yield client
    finally:
        started.stop()
