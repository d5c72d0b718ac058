"""The process around a service."""

import resource
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


LIMITED = """
import resource
from sps2.services.run import run

async def serve(cluster, about, stop):
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))

run("kvdir", serve)
"""


def test_a_service_may_open_as_many_files_as_the_system_allows() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = min(hard, 4096) if hard != resource.RLIM_INFINITY else 4096
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (512, many)),
    )
    assert done.stdout.split() == [str(many)] * 2
