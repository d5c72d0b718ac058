"""The process around a service."""

import subprocess
import sys

import pytest

SERVE = """
from sps2.services.run import run

async def serve(cluster, about, stop):
    print(about.service, about.host, cluster.host)

run("prefill", serve)
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "prefill-0 127.0.0.1 127.0.0.1"),
        (["--index", "2", "--host", "127.0.0.2"], "prefill-2 127.0.0.2 127.0.0.1"),
    ],
)
def test_a_shard_binds_the_host_it_is_given(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVE, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == said
