"""Runs all processes of one shard: `python -m sps2.services.ranks ROLE --config FILE --index I`.

Containers start a shard with it. The configuration's `tp` says how many processes (ranks) a shard
has; they start and end together. Of a pipeline (`pp`), whose stages may be on several machines, it
starts the one stage that `--rank` names. A single process replaces this one.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import get_args

from sps2.common import config, log
from sps2.common.config import Cluster
from sps2.common.errors import Invalid
from sps2.common.messages import Role
from sps2.services.draining import longest_s

GRACE_S = 10.0
"""How long processes without work may take to end before they are killed."""
POLL_S = 0.1

logger = logging.getLogger(__name__)


def commands(
    cluster: Cluster,
    role: Role,
    file: Path | None,
    index: int,
    host: str | None,
    here: str | None,
    stage: int = 0,
) -> list[list[str]]:
    """The command of each process of a shard, or of one stage of it.

    Args:
        here: names of the shards on this machine, separated by commas, or of stages; None: all of
            the cluster.

    Raises:
        Invalid: the configuration has no shard of this role and index, or no such stage.
    """
    if not 0 <= stage < cluster.pp:
        raise Invalid(
            f"a shard has {cluster.pp} stages (`pp`): `--rank` must be 0 to {cluster.pp - 1}"
            if cluster.pp > 1
            else "shards have no stages (`pp` is 1), so that all their processes start here: leave "
            "`--rank` out"
        )
    if not 0 <= index < cluster.shards_of(role):
        raise Invalid(
            f"the configuration has {cluster.shards_of(role)} {role} shards: there is no "
            f"{role}-{index}"
        )
    shared = ["--index", str(index)]
    shared += ["--config", str(file)] if file else []
    shared += ["--host", host] if host else []
    shared += ["--here", ",".join(processes(cluster, here.split(",")))] if here else []
    start = [sys.executable, "-m", f"sps2.services.{role}"]
    ranks = [stage] if cluster.pp > 1 else range(cluster.tp_of(role))
    return [[*start, *shared, *(["--rank", str(rank)] if rank else [])] for rank in ranks]


def processes(cluster: Cluster, shards: Sequence[str]) -> list[str]:
    """The names of all processes of some shards, in the order of `spsctl status`; of a pipeline,
    whose stages may be elsewhere, of those that are named."""
    if cluster.pp > 1:
        return [name for name in cluster.shard_names() if name in shards]
    return [name for name in cluster.shard_names() if {name, name.partition(".")[0]} & {*shards}]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sps2.services.ranks", description=__doc__)
    parser.add_argument("role", choices=get_args(Role))
    parser.add_argument("--config", type=Path, help="TOML configuration of the cluster")
    parser.add_argument("--index", type=int, default=0, help="which shard this is")
    parser.add_argument("--host", help="address or name of this machine to bind")
    parser.add_argument(
        "--here", help="names of the shards on this machine, such as prefill-0,decode-0"
    )
    parser.add_argument("--rank", type=int, default=0, help="which stage of the shard, with `pp`")
    arguments = parser.parse_args()
    log.setup(f"{arguments.role}-{arguments.index}")
    try:
        cluster = config.load(arguments.config)
        place = arguments.index, arguments.host, arguments.here, arguments.rank
        argvs = commands(cluster, arguments.role, arguments.config, *place)
    except Invalid as error:
        logger.error("%s-%d cannot run: %s", arguments.role, arguments.index, error)
        sys.exit(1)
    # as with `spsctl up`: by default OpenMP starts as many threads as the host has cores
    os.environ.setdefault("OMP_NUM_THREADS", str(cluster.shard_threads))
    if len(argvs) == 1:
        os.execv(sys.executable, argvs[0])
    sys.exit(_together(argvs, longest_s(cluster) + GRACE_S))


def _together(argvs: Sequence[Sequence[str]], grace_s: float = GRACE_S) -> int:
    """Run processes until one ends or this one gets a signal; returns the exit status."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    environment = os.environ | {"SPS2_SUPERVISOR_PID": str(os.getpid())}
    ranks = [subprocess.Popen(argv, env=environment) for argv in argvs]
    while not stopped and all(rank.poll() is None for rank in ranks):
        time.sleep(POLL_S)
    for rank in ranks:
        if rank.poll() is None:
            rank.terminate()
    until_s = time.monotonic() + grace_s
    for place, rank in enumerate(ranks):
        with suppress(subprocess.TimeoutExpired):
            rank.wait(max(0.0, until_s - time.monotonic()))
        if rank.poll() is None:
            logger.warning("rank %d did not end in %.0f s; killed", place, grace_s)
            rank.kill()
            rank.wait()
    return 0 if stopped else max(1, *(rank.returncode for rank in ranks))


if __name__ == "__main__":
    main()
