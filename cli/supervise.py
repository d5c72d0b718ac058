"""The supervisor of a cluster: starts its services, restarts those that die, stops them all.

`spsctl up` runs it as `python -m sps2.cli.supervise NAME [--attached]`. Attached, it stops the
cluster when its standard input ends, that is, when `spsctl up` is gone.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress

from sps2.cli.commands import Command, commands
from sps2.cli.node import GRACE_S, HEARTBEAT_S
from sps2.cli.runs import Child, RunFolder, State
from sps2.cli.services import units
from sps2.common import log
from sps2.common.errors import ServiceError
from sps2.services.descriptors import allow_all

FAR_GRACE_S = GRACE_S + 5.0
"""The grace of a service on another host, where `cli.node` has its own grace."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 10.0
HEALTHY_S = 30.0
"""A service that lived this long restarts after the first pause; quick deaths double the pause."""
TOLD = "exited with status 0"
"""How a service ends that was told to, as by `spsctl restart`: that is no death."""

logger = logging.getLogger(__name__)


class Supervisor:
    """Keeps one process of each service alive until it is stopped."""

    def __init__(
        self, folder: RunFolder, services: Mapping[str, Command], grace_s: float = GRACE_S
    ) -> None:
        self._folder = folder
        self._services = services
        self._grace_s = grace_s
        children = {name: Child() for name in services}
        self._state = State(os.getpid(), time.time(), children)

    async def run(self, stop: asyncio.Event) -> None:
        """Run all services until `stop` is set; all have ended when this returns."""
        self._save()
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(self._keep(names)) for names in units(self._services)]
            await stop.wait()
            logger.info("stopping %d services", len(keepers))
            for keeper in keepers:
                keeper.cancel()
        logger.info("all services have ended")

    async def _keep(self, names: list[str]) -> None:
        """Keep a group of services alive, which are restarted together."""
        pause_s = FIRST_PAUSE_S
        await asyncio.sleep(max(self._services[name].delay_s for name in names))
        while True:
            since_s = time.monotonic()
            first = await self._live_together(names)
            lived_s = time.monotonic() - since_s
            told = all(self._state.services[name].last_exit == TOLD for name in first)
            pause_s = FIRST_PAUSE_S if told or lived_s > HEALTHY_S else pause_s
            for name in names:
                how = self._state.services[name].last_exit
                logger.warning("%s %s after %.1f s; restart in %.2f s", name, how, lived_s, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _live_together(self, names: list[str]) -> list[str]:
        """Run each service of a group once; when the first ends, end the others.

        Returns:
            those that ended by themselves.
        """
        lives = {asyncio.create_task(self._live(name)): name for name in names}
        try:
            first, _ = await asyncio.wait(lives, return_when=asyncio.FIRST_COMPLETED)
            return [lives[life] for life in first]
        finally:
            for life in lives:
                life.cancel()
            await asyncio.wait(lives)

    async def _live(self, name: str) -> None:
        """Run a service once, from its start to its end."""
        command = self._services[name]
        environment = os.environ | command.environment | {"SPS2_SUPERVISOR_PID": str(os.getpid())}
        with self._folder.open_log(name) as output:
            process = await asyncio.create_subprocess_exec(
                *command.argv,
                stdin=asyncio.subprocess.PIPE if command.order else asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=self._folder.path,  # not the caller's, whose files could shadow modules
            )
        child = self._state.services[name]
        child.pid, child.launched_at = process.pid, time.time()
        self._save()
        logger.info("%s started, pid %d", name, process.pid)
        heartbeats = asyncio.create_task(_send_order(process, command.order))
        try:
            await process.wait()
        finally:
            heartbeats.cancel()
            if process.returncode is None:
                await self._end(name, process)
            child.pid, child.exits, child.last_exit = 0, child.exits + 1, _how(process)
            self._save()

    def _save(self) -> None:
        try:
            self._folder.write(self._state)
        except OSError as error:  # a full disk must not take the cluster down
            logger.error("cannot write the state: %s", error)

    async def _end(self, name: str, process: asyncio.subprocess.Process) -> None:
        grace_s = self._grace_s
        if process.stdin is None:
            process.terminate()
        else:
            grace_s += FAR_GRACE_S - GRACE_S
            process.stdin.close()
        try:
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            logger.warning("%s did not end in %.0f s; killed", name, grace_s)
            process.kill()
            await process.wait()


async def _send_order(process: asyncio.subprocess.Process, order: bytes) -> None:
    """Write a process's order to its standard input, then heartbeats."""
    if process.stdin is None:
        return
    with suppress(ConnectionError):
        process.stdin.write(order)
        while True:
            await process.stdin.drain()
            await asyncio.sleep(HEARTBEAT_S)
            process.stdin.write(b"\n")


def _how(process: asyncio.subprocess.Process) -> str:
    status = process.returncode
    assert status is not None
    if status >= 0:
        return f"exited with status {status}"
    return f"was ended by {signal.Signals(-status).name}"


async def _main(folder: RunFolder, attached: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    if attached:
        loop.add_reader(sys.stdin.fileno(), stop.set)
    await Supervisor(folder, commands(folder.cluster(), folder)).run(stop)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sps2.cli.supervise", description=__doc__)
    parser.add_argument("name", help="of the cluster; its run folder has the configuration")
    parser.add_argument("--attached", action="store_true", help="stop when standard input ends")
    arguments = parser.parse_args()
    log.setup("supervisor")
    allow_all()
    folder = RunFolder(arguments.name)
    try:
        with folder.owned():
            asyncio.run(_main(folder, arguments.attached))
    except (ServiceError, OSError) as error:
        logger.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
