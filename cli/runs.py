"""The run folder of a cluster on this machine: configuration, state, logs, and its owner."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from sps2.cli.hosts import Hosts
from sps2.common import config, places
from sps2.common.config import Cluster
from sps2.common.config import text as config_text
from sps2.common.errors import Invalid, Refused


class Child(msgspec.Struct):
    """The supervisor's state of one service. `pid` is 0 while no process runs."""

    pid: int = 0
    launched_at: float = 0.0
    exits: int = 0
    last_exit: str = ""
    """How it last ended, in words."""


class State(msgspec.Struct):
    """The content of `state.json`. Times are seconds since the epoch."""

    supervisor: int
    started_at: float
    services: dict[str, Child] = {}


class Joined(msgspec.Struct, frozen=True):
    """The shards that run here for a cluster that was started on another machine."""

    shards: tuple[str, ...]
    """Names of their processes."""
    host: str
    """The address of this machine, which they bind."""


class RunFolder:
    """The folder `run/NAME/` in the folder for runs.

    A supervisor locks the folder as long as it runs, so that neither a stale file nor a reused
    process id can make a cluster seem up.
    """

    def __init__(self, name: str, home: Path | None = None) -> None:
        self.name = name
        self.path = (home or places.state()).absolute() / "run" / name
        self.config = self.path / "cluster.toml"
        self.logs = self.path / "logs"
        self._hosts = self.path / "hosts.json"
        self._joined = self.path / "joined.json"
        self._state = self.path / "state.json"
        self._lock = self.path / "lock"
        self._restart_lock = self.path / "restart.lock"

    def prepare(
        self, cluster: Cluster, hosts: Hosts | None = None, joined: Joined | None = None
    ) -> None:
        """Write the configuration in force, and rename the logs of the last run."""
        self.logs.mkdir(parents=True, exist_ok=True)
        for log in self.logs.glob("*.log"):
            log.replace(log.with_suffix(".log.old"))
        self._state.unlink(missing_ok=True)
        self.config.write_text(
            config_text.dump(cluster, "Written by `spsctl`: what is in force."), encoding="utf-8"
        )
        for path, value in ((self._hosts, hosts), (self._joined, joined)):
            path.unlink(missing_ok=True)
            if value is not None:
                path.write_bytes(msgspec.json.encode(value))

    def cluster(self) -> Cluster:
        """The configuration of the last `up`. Raises Invalid if there is none."""
        return config.load(self.config)

    def hosts(self) -> Hosts | None:
        """The host list of the last `up`; None if all services run here."""
        try:
            return msgspec.json.decode(self._hosts.read_bytes(), type=Hosts)
        except FileNotFoundError:
            return None

    def joined(self) -> Joined | None:
        """What the last `spsctl join` runs here; None if the cluster was started here."""
        try:
            return msgspec.json.decode(self._joined.read_bytes(), type=Joined)
        except FileNotFoundError:
            return None

    def log(self, service: str) -> Path:
        return self.logs / f"{service}.log"

    def open_log(self, service: str) -> IO[bytes]:
        return self.log(service).open("ab", buffering=0)

    def tail(self, service: str, lines: int) -> list[str]:
        """The last lines of a service's log."""
        try:
            with self.log(service).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 400 * lines))
                return file.read().decode(errors="replace").splitlines()[-lines:]
        except FileNotFoundError:
            return []

    def write(self, state: State) -> None:
        """Replace the state atomically."""
        draft = self._state.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(state))
        draft.replace(self._state)

    def state(self) -> State | None:
        """The state that the running supervisor wrote; None if the cluster is not up."""
        if not self.is_up():
            return None
        try:
            return msgspec.json.decode(self._state.read_bytes(), type=State)
        except (FileNotFoundError, msgspec.DecodeError):
            return State(0, time.time())  # its supervisor has only just started

    def is_up(self) -> bool:
        """Whether a supervisor runs this cluster now."""
        try:
            with self._lock.open("r+b") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Own the folder within the block, as its supervisor. Raises Refused if another does."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self._lock.open("ab") as lock:
            for _ in range(20):  # another process's `is_up` holds the lock for an instant
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.02)
            else:
                raise Refused(f"cluster '{self.name}' is already up")
            yield

    @contextmanager
    def restarting(self) -> Iterator[None]:
        """Be the only one within the block that restarts services. Raises Refused if another is."""
        with self._restart_lock.open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(
                    f"a restart of cluster '{self.name}' is under way: wait until that `spsctl "
                    "restart` has ended"
                ) from None
            yield


def known(home: Path | None = None) -> list[RunFolder]:
    """All clusters that were ever up here, latest first."""
    root = (home or places.state()) / "run"
    files = sorted(root.glob("*/cluster.toml"), key=lambda file: -file.stat().st_mtime)
    return [RunFolder(file.parent.name, home) for file in files]


def running(home: Path | None = None) -> list[RunFolder]:
    """The clusters that are up."""
    return [folder for folder in known(home) if folder.is_up()]


def named(name: str) -> RunFolder:
    """The cluster of a name, which is or was up here. Raises Invalid if there is none."""
    names = [folder.name for folder in known()]
    if name not in names:
        there = f"there are: {', '.join(names)}" if names else "none was ever up here"
        raise Invalid(f"there is no cluster {name!r}; {there}")
    return RunFolder(name)


def choose(name: str | None) -> RunFolder:
    """The running cluster of a name, or the only one that is up if `name` is None.

    Raises:
        Invalid: no cluster of that name is up; without a name, none or several are up.
    """
    folders = running()
    names = ", ".join(folder.name for folder in folders)
    if name is not None:
        folder = RunFolder(name)
        if folder.is_up():
            return folder
        others = f", or choose one that is up: {names}" if folders else ""
        raise Invalid(
            f"cluster {name!r} is not up; start it with `spsctl up --name {name}`{others}"
        )
    if not folders:
        raise Invalid("no cluster is up; start one with `spsctl up`")
    if len(folders) > 1:
        raise Invalid(
            f"several clusters are up ({names}); choose one with --name, or SPS2_CLUSTER in the "
            "environment"
        )
    return folders[0]
