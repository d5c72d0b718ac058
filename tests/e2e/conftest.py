"""Real clusters of processes around a tiny random model."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sps2.cli import ports
from sps2.cli.launch import Launch, effective
from sps2.common.config import Cluster

READY_S = 120.0


@dataclass
class Running:
    """A cluster that serves the model in `folder`."""

    config: Cluster
    folder: Path

    @property
    def bus(self) -> str:
        return self.config.gateway_address

    @property
    def url(self) -> str:
        return self.config.http_url


@pytest.fixture(scope="session")
def launch(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Running]]:
    """Brings clusters up (once for the same flags); all end with the session."""
    home = tmp_path_factory.mktemp("home")
    patch = pytest.MonkeyPatch()
    patch.setenv("SPS2_HOME", str(home))
    launched: dict[str, tuple[Launch, Running]] = {}

    def make(name: str, family: str = "smollm2", **flags: object) -> Running:
        if name not in launched:
            folder = checkpoint(family)
            cluster = effective(
                None, model=str(folder), name=name, port=ports.free_base(), threads=1, **flags
            )
            up = Launch(cluster)
            up.start()
            launched[name] = up, Running(cluster, folder)
            asyncio.run(up.until_ready(READY_S))
        return launched[name][1]

    yield make
    for up, _ in launched.values():
        up.stop()
    patch.undo()


@pytest.fixture(scope="session", params=["ucx", "tcp"])
def cluster(request: pytest.FixtureRequest, launch: Callable[..., Running]) -> Running:
    """Two prefill and two decode shards, over each transport."""
    return launch(
        f"e2e-{request.param}",
        transport=request.param,
        prefill=2,
        decode=2,
        dtype="float32",
        scheduler={"prefill_span_tokens": 16, "decode_span_tokens": 64},
    )
