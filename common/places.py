"""Where SPS2 keeps things on this machine: as the XDG base directories tell, or all in one folder.

`$SPS2_HOME` is that folder, if it is set.
"""

import os
from pathlib import Path


def cache() -> Path:
    """Of what can be had again: models, and what is known of them."""
    return _place("XDG_CACHE_HOME", ".cache")


def state() -> Path:
    """Of runs: the configuration in force, logs, and which processes there are."""
    return _place("XDG_STATE_HOME", ".local/state")


def keys() -> Path:
    """Of a cluster's keys, unless they are named: made once, and nowhere else to be had.

    Those that an earlier version put into the cache stay in use until they are moved.
    """
    before = cache() / "keys"
    return before if before.is_dir() and not lasting_keys().exists() else lasting_keys()


def lasting_keys() -> Path:
    """The same, where no program deletes them that clears caches."""
    return _place("XDG_CONFIG_HOME", ".config") / "keys"


def inherited() -> dict[str, str]:
    """The environment of a process in another folder that is to find the same places."""
    home = os.environ.get("SPS2_HOME")
    return {"SPS2_HOME": str(Path(home).expanduser().absolute())} if home else {}


def _place(variable: str, usual: str) -> Path:
    if home := os.environ.get("SPS2_HOME"):
        return Path(home).expanduser()
    given = Path(os.environ.get(variable, ""))
    return (given if given.is_absolute() else Path.home() / usual) / "sps2"
