"""The supervisor's process, as those see it that start, watch and stop it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

from sps2.cli.runs import RunFolder
from sps2.cli.supervise import FAR_GRACE_S
from sps2.common import places

POLL_S = 0.1
STOP_S = FAR_GRACE_S + 5.0


class SupervisorProcess:
    """The supervisor of the services in a run folder, which must be prepared before `start`."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._exits: dict[str, int] = {}

    def start(self, detach: bool = False) -> None:
        """Start it; unless detached, it ends with this process in any case."""
        argv = [sys.executable, "-m", "sps2.cli.supervise", self._folder.name]
        with self._folder.open_log("supervisor") as output:
            self._process = subprocess.Popen(
                [*argv, *([] if detach else ["--attached"])],
                stdin=subprocess.DEVNULL if detach else subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=self._folder.path,
                env=os.environ | places.inherited(),
                start_new_session=True,  # Ctrl-C in a terminal must not reach it
            )

    @property
    def is_up(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def restarts(self) -> Iterator[str]:
        """Which services died since the last call, and how, in words."""
        state = self._folder.state()
        for name, child in state.services.items() if state else ():
            if child.exits > self._exits.get(name, 0):
                self._exits[name] = child.exits
                yield f"{name} {child.last_exit}; it is started again (spsctl logs {name})"

    def stop(self) -> None:
        """End it and all services; returns when they have ended."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                _kill(self._folder)
                process.kill()
                process.wait()
        if process.stdin is not None:
            process.stdin.close()


def stop(folder: RunFolder) -> bool:
    """Stop a cluster, whoever started it; returns False if it was not up."""
    if not folder.is_up():
        return False
    deadline_s = time.monotonic() + STOP_S
    while folder.is_up():
        state = folder.state()
        if state is not None and state.supervisor:
            if time.monotonic() > deadline_s:
                _kill(folder)
            else:
                send_signal(state.supervisor, signal.SIGTERM)
        time.sleep(POLL_S)
    return True


def _kill(folder: RunFolder) -> None:
    """Kill supervisor and services, as a last resort."""
    state = folder.state()
    if state is not None and state.supervisor:
        for pid in (state.supervisor, *(child.pid for child in state.services.values())):
            send_signal(pid, signal.SIGKILL)


def send_signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process, unless it has ended."""
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
