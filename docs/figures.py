"""The tables of docs/benchmarks.md, made from the records in benchmarks/results.

    python docs/figures.py

A table stands between `<!-- figures: KIND RECORD PARTS -->` and `<!-- figures: end -->`. `quoted`
gives the sentences with figures that README.md repeats.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(
    r"(<!-- figures: (\S+) (\S+) ?([^>]*?) ?-->\n).*?(<!-- figures: end -->)", flags=re.S
)

Record = dict[str, Any]

CASES = {
    "sps2": "SPS2, 2 prefill + 2 decode",
    "sps2 balanced": "the same, `balanced`",
    "sps2 SP 1": "the same, one prefill shard",
    "sps2-any": "SPS2, `--any 2`",
    "sps2-mixed": "SPS2, `--mixed 2`",
    "sps2-int4": "SPS2, 2 + 2, int4",
    "vllm": "vLLM",
    "vllm-latency": "vLLM, `--max-num-batched-tokens=512`",
    "llama.cpp-q4": "llama.cpp, Q4_1",
    "ring-by-turns": "ring, transfers and arithmetic in turn",
    "ring": "ring",
    "gather": "gather",
    "balanced": "`balanced`",
    "fast": "`fast`",
}
"""What the page calls a case of a record."""


def record(name: str) -> Record:
    """One record of benchmarks/results."""
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def written(page: str) -> str:
    """A page with all of its tables made anew. ValueError if it has no place for any."""

    def made(place: re.Match[str]) -> str:
        begin, kind, name, parts, end = place.groups()
        table = KINDS[kind](record(name), parts.split())
        return f"{begin}\n{_source(name)}\n\n{table}\n\n{end}"

    text, count = PLACE.subn(made, page)
    if not count:
        raise ValueError("the page has no <!-- figures: KIND RECORD -->")
    return text


def quoted() -> list[str]:
    """The sentences of README.md with figures, as the records have them."""
    peers = record("2026-11-29-1621-peers")
    links = record("2026-11-21-1529-links")
    two = _cell(peers, "8000 tokens", "TTFT, s", "sps2")
    one = _cell(peers, "8000 tokens", "TTFT, s", "sps2 SP 1")
    stall = "longest stall by a newcomer of 8000, ms"
    ours = _cell(peers, "8 streams at 2048", stall, "sps2")
    theirs = _cell(peers, "8 streams at 2048", stall, "vllm")
    tuned = _cell(peers, "8 streams at 2048", stall, "vllm-latency")
    mixed = record("2026-11-30-0022-peers")
    beside = "TTFT of 64 beside 7600 p99, ms"
    short, waits = (_cell(mixed, "short beside long", beside, case) for case in ("sps2", "vllm"))
    gather, balanced = _row(links, 100, "gather"), _row(links, 100, "balanced")
    return [
        f"{one['value']:.1f} s with one prefill shard and {two['value']:.1f} s with two",
        f"{ours['value'] / 1e3:.2f} s, and {theirs['value'] / 1e3:.1f} s in vLLM",
        f"{short['value'] / 1e3:.2f} s (p99), and {waits['value'] / 1e3:.1f} s in vLLM",
        f"({tuned['value'] / 1e3:.1f} s with `--max-num-batched-tokens=512`)",
        f"{gather['exchange_bytes'] / 1e6:.0f} MB to {balanced['exchange_bytes'] / 1e6:.0f} MB",
        f"from {gather['ttft_s']:.1f} s to {balanced['ttft_s']:.1f} s",
    ]


def _source(name: str) -> str:
    found = record(name)
    path = f"benchmarks/results/{name}.json"
    parts = [f"Record: [{name}.json](../{path})"]
    if "commit" in found:
        parts.append(f"commit {found['commit']}")
    if "command" in found:
        parts.append(f"`{found['command']}`")
    if versions := found.get("versions"):
        parts.append(", ".join(f"{peer} {version}" for peer, version in versions.items()))
    if found.get("problems"):
        parts.append(f"the record says: {', '.join(found['problems'])}")
    return ";\n".join(parts) + "."


def _peers(found: Record, parts: list[str]) -> str:
    """Rows for each figure and case: median, extremes, and SPS2's over it."""
    samples: dict[tuple[str, ...], list[float]] = {}
    for sample in found["samples"]:
        for figure, value in sample["values"].items():
            key = (sample["part"], sample["setting"], figure, sample["case"])
            samples.setdefault(key, []).append(value)
    rows, before = [], ""
    for cell in found["cells"]:
        if cell["part"] not in parts or cell["figure"] in SKIPPED:
            continue
        what = _measure(cell["setting"], cell["figure"])
        values = samples[cell["part"], cell["setting"], cell["figure"], cell["case"]]
        rows.append(
            (
                what if what != before else "",
                CASES[cell["case"]],
                str(cell["repeats"]),
                _short(cell["value"]),
                f"{_short(min(values))} to {_short(max(values))}",
                "" if cell["case"] == "sps2" or not cell["ratio"] else f"{cell['ratio']:.2f}",
            )
        )
        before = what
    return _table(("measure", "system", "samples", "median", "min to max", "SPS2 / it"), rows)


def _links(found: Record, parts: list[str]) -> str:
    """Rows for each rate, SP degree and method."""
    rows, before = [], ""
    for row in found["rows"]:
        if parts and f"sp{row['sp_degree']}" not in parts:
            continue
        same = ("mbit_s", "tokens", "sp_degree", "case")
        times = [
            sample["usage"]["ttft_ms"] / 1e3
            for sample in found["samples"]
            if sample["usage"] and all(sample[key] == row[key] for key in same)
        ]
        where = f"{row['mbit_s']} Mbit/s, {row['sp_degree']} prefill shards"
        rows.append(
            (
                where if where != before else "",
                CASES[row["case"]],
                str(row["repeats"]),
                f"{row['ttft_s']:.1f}",
                f"{min(times):.1f} to {max(times):.1f}",
                f"{row['ratio']:.2f}",
                f"{row['exchange_bytes'] / 1e6:.0f}",
            )
        )
        before = where
    heads = ("links", "method", "samples", "TTFT, s", "min to max", "it / first row", "MB sent")
    return _table(heads, rows)


def _transformers(found: Record, _: list[str]) -> str:
    """Rows for each length and system; the ratio is that of medians, the record has no pairs."""
    rows = []
    for length, cases in found["ttft_s"].items():
        rows += _beside(f"TTFT, {int(length):,} tokens, s", cases, 1.0)
    between = {
        case: values for case, values in found["tbt_median_s"].items() if "float32" not in case
    }
    rows += _beside("TBT at 2,048 tokens, ms", between, 1e3)
    return _table(("measure", "system", "samples", "median", "min to max", "SPS2 / it"), rows)


def _beside(what: str, cases: dict[str, list[float]], factor: float) -> list[tuple[str, ...]]:
    base = sorted(cases["sps2"])[len(cases["sps2"]) // 2]
    rows: list[tuple[str, ...]] = []
    for case, values in cases.items():
        middle = sorted(values)[len(values) // 2]
        rows.append(
            (
                what if case == "sps2" else "",
                CASES.get(case, case),
                str(len(values)),
                _short(middle * factor),
                f"{_short(min(values) * factor)} to {_short(max(values) * factor)}",
                "" if case == "sps2" else f"{base / middle:.2f}",
            )
        )
    return rows


def _soak(found: Record, _: list[str]) -> str:
    """A row for each figure, a column for each transport."""
    figures: dict[str, Callable[[Record], str]] = {
        "messages": lambda one: f"{one['messages']:,}",
        "TB": lambda one: f"{one['gigabytes'] / 1e3:.2f}",
        "wrong bytes": lambda one: str(one["wrong"]),
        "processes killed": lambda one: str(one["kills"]),
        "longest time without progress, s": lambda one: f"{one['longest_gap_s']:.2f}",
        "the same after a kill, s": lambda one: f"{one['longest_gap_after_kill_s']:.2f}",
        "memory of a process, MB": _memory,
        "CPU while idle, %": lambda one: f"{one['idle_cpu_percent']:.3f}",
        "1 KiB there and back, median, us": lambda one: f"{one['rtt_1KiB_median_us']:.0f}",
        "1 KiB there and back, 99th percentile, us": lambda one: f"{one['rtt_1KiB_p99_us']:.0f}",
        "16 MiB, GB/s": lambda one: f"{one['16MiB_GB_per_s']:.1f}",
    }
    rows = [(what, tell(found["ucx"]), tell(found["tcp"])) for what, tell in figures.items()]
    return _table(("measure", "UCX", "TCP"), rows)


def _memory(one: Record) -> str:
    sizes = [size for minute in one["rss_mb_by_minute"] for size in minute]
    return f"{min(sizes)} to {max(sizes)}"


def _decode(found: Record, _: list[str]) -> str:
    """Decoding with the KV on one shard and on two hosts."""
    rows = [
        (
            f"{row['mbit_s']} Mbit/s, {row['tokens']:,} tokens",
            f"{row['local_ms']:.1f}",
            f"{row['two_holders_ms']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['bytes_per_token_and_layer']:,.0f}",
        )
        for row in found["rows"]
    ]
    heads = ("links", "TBT, KV on one shard, ms", "on two, ms", "ratio", "bytes a token and layer")
    return _table(heads, rows)


def _gateway(found: Record, _: list[str]) -> str:
    """What the gateway and the bus cost."""
    rows = [
        (what, *(f"{found[key][part] / scale:.2f}" for part in ("median", "p99", "most")))
        for what, key, scale in (
            ("RPC there and back, ms", "rpc_us", 1e3),
            ("a token's way from owner to HTTP client, ms", "way_ms", 1),
            ("the same, all streams in step, ms", "way_in_step_ms", 1),
        )
    ]
    return _table(("measure", "median", "99th percentile", "most"), rows)


KINDS: dict[str, Callable[[Record, list[str]], str]] = {
    "peers": _peers,
    "links": _links,
    "decode": _decode,
    "transformers": _transformers,
    "soak": _soak,
    "gateway": _gateway,
}
SKIPPED = {"of it anonymous, MiB", "of it files, MiB", "of it shared memory, MiB"}


def _cell(found: Record, setting: str, figure: str, case: str) -> Record:
    wanted = (setting, figure, case)
    return next(
        cell for cell in found["cells"] if (cell["setting"], cell["figure"], cell["case"]) == wanted
    )


def _row(found: Record, mbit_s: int, case: str) -> Record:
    return next(row for row in found["rows"] if row["mbit_s"] == mbit_s and row["case"] == case)


def _measure(setting: str, figure: str) -> str:
    figure = re.sub(r"\b(\d)(\d{3})\b", r"\1,\2", figure)
    setting = re.sub(r"\b(\d)(\d{3})\b", r"\1,\2", setting)
    return f"process start, {figure}" if setting == "start" else f"{setting}: {figure}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, *rows]
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([text[0], "|---" * len(heads) + "|", *text[1:]])


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
