"""The metrics from heartbeats: their names, meanings, and the counters behind them."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from sps2.common.bus.telemetry import Heartbeat

NO_LABELS: Mapping[str, str] = {}


PART = 1e-6
"""Rounding error that a sum of parts may have."""


class Family(NamedTuple):
    """One metric.

    Attributes:
        name: a counter's without `_total`.
        series: the counters of a heartbeat behind it, each with the labels that distinguish it.
    """

    name: str
    kind: Literal["counter", "gauge"]
    text: str
    series: Mapping[str, Mapping[str, str]]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels in `series`."""
        return tuple(next(iter(self.series.values())))

    def shown(self, value: float) -> float:
        """The value to show: counts are rounded down to integers, since layers count fractions."""
        is_whole = self.kind == "counter" and not self.name.endswith("_seconds")
        return float(int(value + PART)) if is_whole else value


def _one(name: str, kind: Literal["counter", "gauge"], text: str, counter: str) -> Family:
    return Family(name, kind, text, {counter: NO_LABELS})


def _by(
    name: str, kind: Literal["counter", "gauge"], text: str, label: str, **values: str
) -> Family:
    """A metric by `label`. `values`: the counter of a heartbeat for each value of the label."""
    series = {counter: {label: value} for value, counter in values.items()}
    return Family(name, kind, f"{text}, by `{label}`", series)


_PURPOSES = {
    "exchange_kv": "kv",
    "exchange_q": "q",
    "exchange_state": "state",
    "exchange_probe": "probe",
    "prefix_q": "prefix_q",
    "prefix_state": "prefix_state",
    "deposit": "deposit",
    "decode_q": "question",
    "decode_state": "answer",
    "decode_step": "step",
}
"""Kinds of communication, each with the purpose of its frames."""

FAMILIES: tuple[Family, ...] = (
    _one(
        "sps2_up",
        "gauge",
        "1 for every process of the cluster that is heard; one that is lost has no value",
        "up",
    ),
    _one(
        "sps2_process_resident_memory_bytes",
        "gauge",
        "Resident memory of a process",
        "rss_bytes",
    ),
    _by(
        "sps2_shards",
        "gauge",
        "Shards that are there",
        "shard_role",
        prefill="prefill_shards",
        decode="decode_shards",
        mixed="mixed_shards",
    ),
    _by(
        "sps2_shards_expected",
        "gauge",
        "Shards that are configured",
        "shard_role",
        prefill="prefill_shards_expected",
        decode="decode_shards_expected",
        mixed="mixed_shards_expected",
    ),
    _one(
        "sps2_num_requests_waiting",
        "gauge",
        "Choices of requests that wait for shards or KV pages",
        "requests_waiting",
    ),
    _one(
        "sps2_num_requests_running",
        "gauge",
        "Choices of requests that have shards and KV pages",
        "requests_running",
    ),
    _by(
        "sps2_replans",
        "counter",
        "Plans made again for a request because a shard was lost or its pages were refused",
        "reason",
        lost="replans_lost",
        refused="replans_refused",
    ),
    _one(
        "sps2_preemptions",
        "counter",
        "Requests that gave their KV pages up to answers that grow; they resume when there is room",
        "preemptions",
    ),
    _one(
        "sps2_handovers",
        "counter",
        "Requests that had to go on on other shards, since one that drained or ended was late",
        "handovers",
    ),
    _one(
        "sps2_broken_rules",
        "counter",
        "Decisions of the scheduling policy that were not carried out; more than 0 is a bug in it",
        "broken_rules",
    ),
    _by(
        "sps2_shard_requests",
        "gauge",
        "Requests that a shard prefills, generates for (owned), or holds KV of",
        "stage",
        prefilling="prefilling",
        owned="owned",
        held="held",
    ),
    _one(
        "sps2_compute_busy_seconds",
        "counter",
        "CPU seconds of a shard's computing threads",
        "busy_s",
    ),
    _one(
        "sps2_prefill_held_back_seconds",
        "counter",
        "Seconds in which a shard held back a prefill because a more urgent one was under way",
        "held_back_s",
    ),
    _one(
        "sps2_prefill_tokens",
        "counter",
        "Prompt tokens that a shard computed; those found in the prefix cache are not among them",
        "prefill_tokens",
    ),
    _one(
        "sps2_decode_steps",
        "counter",
        "Steps of a shard's decode batch; each makes a token of every request in it",
        "decode_steps",
    ),
    _one(
        "sps2_decode_tokens", "counter", "Tokens that a shard's decode steps made", "decode_tokens"
    ),
    _one(
        "sps2_decode_keys",
        "counter",
        "Keys that the queries of decode steps attended to, per layer",
        "decode_keys",
    ),
    _one(
        "sps2_decode_keys_read",
        "counter",
        "Keys that decode steps read, per layer; a prefix that requests share is read once",
        "decode_keys_read",
    ),
    _by(
        "sps2_sent_bytes",
        "counter",
        "Bytes that a process sent over the data plane, headers included",
        "kind",
        **{kind: f"{purpose}_sent" for kind, purpose in _PURPOSES.items()},
    ),
    _by(
        "sps2_received_bytes",
        "counter",
        "Bytes that a process received over the data plane, headers included",
        "kind",
        **{kind: f"{purpose}_received" for kind, purpose in _PURPOSES.items()},
    ),
    _by(
        "sps2_data_plane_faults",
        "counter",
        "Frames that nobody wanted (usual after a cancel), malformed frames, and lost peers",
        "fault",
        frames_dropped="frames_dropped",
        bad_frames="bad_frames",
        bad_hellos="bad_hellos",
        accept_errors="accept_errors",
        handler_errors="handler_errors",
        peers_lost="peers_lost",
    ),
    _one(
        "sps2_exchange_seconds",
        "counter",
        "Seconds in which a prefill shard exchanged data with its group",
        "exchange_s",
    ),
    _one(
        "sps2_exchange_hidden_seconds",
        "counter",
        "Seconds in which a prefill shard exchanged data with its group and computed too",
        "hidden_s",
    ),
    _one(
        "sps2_csa_blocks",
        "counter",
        "Blocks of keys and values that CSA chose from, per KV head and layer",
        "csa_blocks",
    ),
    _one(
        "sps2_csa_kept_blocks",
        "counter",
        "Blocks of keys and values that CSA moved, per KV head and layer",
        "csa_kept_blocks",
    ),
    _one("sps2_kv_pages", "gauge", "Size of a shard's KV pool in pages", "kv_pages"),
    _one("sps2_kv_pages_used", "gauge", "KV pages in use by requests", "kv_pages_used"),
    _one(
        "sps2_kv_pages_idle",
        "gauge",
        "KV pages that hold cached prefixes and are free if they are needed",
        "kv_pages_idle",
    ),
    _one(
        "sps2_kv_cache_usage_perc",
        "gauge",
        "Share of a shard's KV pages that requests use; 1 is all",
        "kv_usage",
    ),
    _one("sps2_kv_leases", "gauge", "Choices of requests with a lease on KV pages", "kv_leases"),
    _one(
        "sps2_kv_leaked_pages",
        "gauge",
        "KV pages that a shard holds for requests that ended; anything but 0 is a fault",
        "kv_leaked_pages",
    ),
    _one(
        "sps2_prefix_cache_pages",
        "gauge",
        "KV pages of the prefix cache, in use or not",
        "kv_cached_pages",
    ),
    _one(
        "sps2_prefix_cache_evicted_pages",
        "counter",
        "KV pages evicted from the prefix cache",
        "kv_evicted_pages",
    ),
    _one(
        "sps2_prefix_cache_disk_pages",
        "gauge",
        "KV pages on disks that the KV directory knows of",
        "kv_cached_disk_pages",
    ),
    _one(
        "sps2_kv_cache_hit_pages",
        "counter",
        "Cached KV pages that requests shared on a shard, in memory",
        "kv_hits",
    ),
    _one("sps2_kv_disk_pages", "gauge", "KV pages that a shard has on disk", "kv_disk_pages"),
    _one("sps2_kv_disk_bytes", "gauge", "Bytes of KV pages on a shard's disk", "kv_disk_bytes"),
    _one(
        "sps2_kv_disk_pinned_pages",
        "gauge",
        "KV pages that stay on a shard's disk",
        "kv_disk_pinned",
    ),
    _one(
        "sps2_kv_disk_hit_pages",
        "counter",
        "KV pages that a shard read from disk for requests",
        "kv_disk_hits",
    ),
    _by(
        "sps2_kv_disk_transferred_bytes",
        "counter",
        "Bytes of KV pages that a shard read from disk and wrote to it",
        "direction",
        read="kv_disk_read_bytes",
        written="kv_disk_written_bytes",
    ),
    _by(
        "sps2_kv_disk_faults",
        "counter",
        "Page files that were damaged, and reads and writes that failed; no request fails by them",
        "fault",
        damaged="kv_disk_damaged",
        unreadable="kv_disk_unreadable",
        unwritable="kv_disk_unwritable",
    ),
)


def values(heartbeat: Heartbeat) -> dict[str, float]:
    """The counters of a heartbeat and values derived from them, by the names that `series` uses."""
    found = heartbeat.counters | {"up": 1.0, "rss_bytes": float(heartbeat.rss_bytes)}
    free, idle = found.get("kv_pages_free"), found.get("kv_pages_idle")
    if (pages := found.get("kv_pages")) and free is not None and idle is not None:
        used = pages - free - idle
        found |= {"kv_pages_used": used, "kv_usage": used / pages}
    return found
