"""Real clusters of processes around a tiny random model."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sps2.cli import ports
from sps2.cli.local import running_cluster
from sps2.common import config


@dataclass
class Running:
    """A cluster that serves the model in `folder`, in float32."""

    folder: Path
    bus: str
    url: str


Launch = Callable[..., AbstractContextManager[Running]]
PROCESSES = "several-processes"
"""The name of a cluster of `launch_processes`."""


@pytest.fixture(scope="module")
def launch(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Launch]:
    """Brings up a family over a transport: two prefill and two decode shards, or `shards`."""

    @contextmanager
    def running(family: str, transport: str, **more: object) -> Iterator[Running]:
        port = ports.free_base()
        served = (
            tmp_path_factory.mktemp("served") / family
        )  # clusters write quantised weights there
        folder = Path(shutil.copytree(checkpoint(family), served))
        flags = {
            "scheduler": {"prefill_span_tokens": 16, "decode_span_tokens": 64},
            "sharing": {"gflops": 1.0, "link_gbit": 10.0, "link_latency_s": 0.0},
            "dtype": "float32",
            "threads": 1,
            **({} if "mixed" in more else {"prefill": 2, "decode": 2}),
            **more,
        }
        with running_cluster(
            name=f"{family}-{port}", port=port, model=str(folder), transport=transport, **flags
        ):
            cluster = config.load(port=port)
            yield Running(folder, cluster.gateway_address, cluster.http_url)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPS2_HOME", str(tmp_path_factory.mktemp("home")))
        yield running


@pytest.fixture(scope="module", params=["ucx", "tcp"])
def cluster(request: pytest.FixtureRequest, launch: Launch) -> Iterator[Running]:
    """A cluster over each transport."""
    with launch("smollm2", request.param) as running:
        yield running


@pytest.fixture
def launch_processes(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Launch:
    """Brings up a cluster whose shards are several processes each.

    Prompts of more than 128 tokens are computed in chunks.
    """
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))
    folder = checkpoint("llama3")

    @contextmanager
    def running(**flags: Any) -> Iterator[Running]:
        usual = {
            "scheduler": {"prefill_span_tokens": 16, "decode_span_tokens": 64, "chunk_tokens": 64},
            "dtype": "float32",
            "threads": 1,
            "kv": {"growth_tokens": 16},
        }
        port = ports.free_base()
        with running_cluster(name=PROCESSES, port=port, model=str(folder), **(usual | flags)):
            cluster = config.load(port=port)
            yield Running(folder, cluster.gateway_address, cluster.http_url)

    return running
