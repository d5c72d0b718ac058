"""The metrics that processes tell in their beats: names, meanings, and what they are made of."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from sps2.common.telemetry import Beat

NO_LABELS: Mapping[str, str] = {}


class Family(NamedTuple):
    """One metric.

    Attributes:
        name: a counter's without `_total`.
        series: the counters of a beat that it is made of, with the labels that tell them apart.
    """

    name: str
    kind: Literal["counter", "gauge"]
    text: str
    series: Mapping[str, Mapping[str, str]]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of those labels."""
        return tuple(next(iter(self.series.values())))


def _one(name: str, kind: Literal["counter", "gauge"], text: str, counter: str) -> Family:
    return Family(name, kind, text, {counter: NO_LABELS})


def _by(
    name: str, kind: Literal["counter", "gauge"], text: str, label: str, **values: str
) -> Family:
    """`values`: counters of a beat by the label's value."""
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
"""Kinds of communication, with the purpose of their frames."""

FAMILIES: tuple[Family, ...] = (
    _one("sps2_up", "gauge", "1 for every process that beats", "up"),
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
        any="any_shards",
    ),
    _by(
        "sps2_shards_expected",
        "gauge",
        "Shards that are configured",
        "shard_role",
        prefill="prefill_shards_expected",
        decode="decode_shards_expected",
        any="any_shards_expected",
    ),
    _one(
        "sps2_num_requests_waiting",
        "gauge",
        "Requests that wait for shards or pages; each choice is one",
        "requests_waiting",
    ),
    _one(
        "sps2_num_requests_running",
        "gauge",
        "Requests that have shards and pages",
        "requests_running",
    ),
    _by(
        "sps2_replans",
        "counter",
        "Requests planned again: a shard was `lost`, or the directory `refused` the lease",
        "reason",
        lost="replans_lost",
        refused="replans_refused",
    ),
    _by(
        "sps2_shard_requests",
        "gauge",
        "Requests that a shard prefills, owns (generates for) and holds KV of",
        "stage",
        prefilling="prefilling",
        owned="owned",
        held="held",
    ),
    _one(
        "sps2_compute_busy_seconds",
        "counter",
        "CPU time of a shard's computing thread; of `any` shards, of both threads",
        "busy_s",
    ),
    _one(
        "sps2_prefill_tokens",
        "counter",
        "Tokens computed in prefill; those found in the cache are not",
        "prefill_tokens",
    ),
    _one("sps2_decode_steps", "counter", "Decode steps of a shard's batch", "decode_steps"),
    _one("sps2_decode_tokens", "counter", "Tokens that these steps made", "decode_tokens"),
    _one(
        "sps2_decode_keys",
        "counter",
        "Keys that queries of decode steps attended to, per layer",
        "decode_keys",
    ),
    _one(
        "sps2_decode_keys_read",
        "counter",
        "Of these, keys read from memory: a prefix that requests share is read once",
        "decode_keys_read",
    ),
    _by(
        "sps2_sent_bytes",
        "counter",
        "Bytes sent over the data plane, headers included",
        "kind",
        **{kind: f"{purpose}_sent" for kind, purpose in _PURPOSES.items()},
    ),
    _by(
        "sps2_received_bytes",
        "counter",
        "Bytes received over the data plane, headers included",
        "kind",
        **{kind: f"{purpose}_received" for kind, purpose in _PURPOSES.items()},
    ),
    _by(
        "sps2_data_plane_faults",
        "counter",
        "Frames without a taker (after a cancel, no fault), malformed ones, and lost peers",
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
        "Time in which a prefill shard awaited or made transfers with its group",
        "exchange_s",
    ),
    _one(
        "sps2_exchange_hidden_seconds",
        "counter",
        "Of this, time in which it computed too: their ratio is the overlap",
        "hidden_s",
    ),
    _one(
        "sps2_csa_blocks",
        "counter",
        "Blocks of keys and values that CSA could have moved, per KV head and layer",
        "csa_blocks",
    ),
    _one(
        "sps2_csa_kept_blocks",
        "counter",
        "Of these, blocks that it moved: their ratio is the kept fraction",
        "csa_kept_blocks",
    ),
    _one("sps2_kv_pages", "gauge", "Size of a shard's KV pool in pages", "kv_pages"),
    _one("sps2_kv_pages_used", "gauge", "KV pages in use by requests", "kv_pages_used"),
    _one(
        "sps2_kv_pages_idle",
        "gauge",
        "KV pages that are cached and free if they are needed",
        "kv_pages_idle",
    ),
    _one(
        "sps2_kv_cache_usage_perc",
        "gauge",
        "KV pages in use by requests, of the pool; 1 is all",
        "kv_usage",
    ),
    _one("sps2_kv_leases", "gauge", "Requests with a lease on KV pages", "kv_leases"),
    _one(
        "sps2_kv_leaked_pages",
        "gauge",
        "KV pages held for requests nobody leases; anything but 0 is a fault",
        "kv_leaked_pages",
    ),
    _one("sps2_prefix_cache_pages", "gauge", "KV pages in the prefix cache", "kv_cached_pages"),
    _one(
        "sps2_prefix_cache_evicted_pages",
        "counter",
        "KV pages evicted from the prefix cache",
        "kv_evicted_pages",
    ),
)


def values(beat: Beat) -> dict[str, float]:
    """What a beat tells, and what follows from it, by the names that `series` uses."""
    told = beat.counters | {"up": 1.0, "rss_bytes": float(beat.rss_bytes)}
    if pages := told.get("kv_pages"):
        used = pages - told["kv_pages_free"] - told["kv_pages_idle"]
        told |= {"kv_pages_used": used, "kv_usage": used / pages}
    return told
