"""The configuration that `spsctl up` starts a cluster with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import msgspec

from sps2.cli.hosts import Hosts
from sps2.common import config, keys, places
from sps2.common.config import Cluster, is_loopback
from sps2.common.config.explained import explained
from sps2.common.errors import Invalid
from sps2.common.messages import Role
from sps2.common.model.config import read
from sps2.common.model.share import require_quantisable, share_of
from sps2.common.model.stage import stage_of
from sps2.common.models import locate

NESTED = {
    "policy": "scheduler",
    "access_log": "gateway",
    "processes": "gateway",
    "disk_folder": "kv",
    "disk_gib": "kv",
}
"""Flags that set a key of a table, and the table's name."""
KEYS = {"kv_disk": "disk_folder", "kv_disk_gib": "disk_gib", "gateways": "processes"}
"""Flags of `spsctl up` with another name than their key has."""


def effective(
    path: Path | None,
    hosts: Hosts | None = None,
    find: Callable[[str], Path] = locate,
    **flags: Any,
) -> Cluster:
    """The configuration in force: a file, overridden by flags; local paths made absolute.

    Args:
        hosts: the hosts of the cluster, which determine its numbers of shards; then the model need
            not be on this machine.
        find: returns the folder of the model.
        flags: top-level keys of the configuration, `port`, `keys`, and those of `NESTED`; None
            keeps the file's value.

    Raises:
        Invalid: a key, a value or the file is wrong, or the model was not pulled or does not fit
            (`require_fit`), or others could reach a cluster without keys.
    """
    nested = {key: flags.pop(key, None) for key in NESTED}
    cluster = config.load(path, **(flags | (hosts.shards() if hosts else {})))
    tables = msgspec.to_builtins(cluster) | (hosts.shards(cluster.pp) if hosts else {})
    for key, value in nested.items():
        if value is not None:
            tables[NESTED[key]][key] = value
    if hosts is None:
        cluster.require_keys(cluster.host)
    elif not (cluster.bus.keys or all(map(is_loopback, hosts.addresses()))):
        raise Invalid(
            "the hosts can be reached from other machines, and the cluster has no keys: run "
            f"`spsctl keys init`, then add `--keys {places.keys()}`"
        )
    keys.cluster_key(cluster.bus)
    if hosts is None:
        require_fit(cluster, find(cluster.model))
    local = Path(cluster.model).expanduser()
    if local.exists() and (local.is_dir() or local.suffix == ".gguf"):
        tables["model"] = str(local.resolve())
    if cluster.bus.keys:
        tables["bus"]["keys"] = str(Path(cluster.bus.keys).expanduser().resolve())
    if tables["kv"]["disk_folder"] and hosts is None:
        folder = Path(tables["kv"]["disk_folder"])
        tables["kv"]["disk_folder"] = str(folder.expanduser().resolve())
    try:
        cluster = msgspec.convert(tables, Cluster)
    except msgspec.ValidationError as error:
        raise Invalid(explained(error, Cluster)) from error
    return hosts.addressed(cluster) if hosts else cluster


def require_fit(cluster: Cluster, folder: Path) -> None:
    """Check that the model in `folder` can be served with a configuration.

    Raises:
        Invalid: its context is shorter than `max_context`, or it cannot be split or quantised as
            configured.
    """
    model = read(folder)
    model.context_within(cluster.max_context)
    roles = [role for role in get_args(Role) if cluster.shards_of(role)]
    for tp in {cluster.tp_of(role) for role in roles}:
        if tp > 1:
            share_of(model, tp)
        if cluster.pp > 1:
            stage_of(model, 0, cluster.pp)
        if cluster.quantize != "none":
            require_quantisable(model, cluster.quantize, tp)
