"""The folders of SPS2 on this machine: in the XDG base directories, or all in `$SPS2_HOME`."""

import os
from pathlib import Path


def cache() -> Path:
    """The folder for what can be downloaded or made again: models and their digests."""
    return _place("XDG_CACHE_HOME", ".cache")


def state() -> Path:
    """The folder for runs: the configuration in force, logs, and processes."""
    return _place("XDG_STATE_HOME", ".local/state")


def keys() -> Path:
    """The default folder of a cluster's keys, which cannot be restored if they are lost.

    Keys that an earlier version put into the cache stay in use until they are moved.
    """
    before = cache() / "keys"
    return before if before.is_dir() and not lasting_keys().exists() else lasting_keys()


def lasting_keys() -> Path:
    """The folder of keys outside the cache, which cleaners may delete."""
    return _place("XDG_CONFIG_HOME", ".config") / "keys"


def inherited() -> dict[str, str]:
    """Environment variables with which a process in another folder finds the same folders."""
    home = os.environ.get("SPS2_HOME")
    return {"SPS2_HOME": str(Path(home).expanduser().absolute())} if home else {}


def _place(variable: str, usual: str) -> Path:
    if home := os.environ.get("SPS2_HOME"):
        return Path(home).expanduser()
    given = Path(os.environ.get(variable, ""))
    return (given if given.is_absolute() else Path.home() / usual) / "sps2"
