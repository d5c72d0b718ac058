"""The tables and plots of docs/evaluation.md, from the newest record of each part."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from evaluation.plots import draw

Record = dict[str, Any]
PLACE = re.compile(r"(<!-- evaluation: (\S+) ?([^>]*?) ?-->\n).*?(<!-- evaluation: end -->)", re.S)
TITLES = {
    "ttft_s.all.mean": "mean TTFT, s",
    "ttft_s.short.p99": "p99 TTFT of short prompts, s",
    "ttft_s.long.mean": "mean TTFT of long prompts, s",
    "slowdown.all.p99": "p99 slowdown",
    "tbt_s.all.p99": "p99 TBT, ms",
    "e2e_s.all.mean": "mean E2E, s",
    "prefill_tokens_per_s": "prefill, tokens/s",
    "decode_tokens_per_s": "decode, tokens/s",
    "sent_bytes_per_request.all": "MB sent a request",
    "starved": "starved, %",
}
SCALES = {"tbt_s.all.p99": 1e3, "sent_bytes_per_request.all": 1e-6, "starved": 100.0}
PAPER = (
    ("TTFT", 7.5, "ttft_s.all.mean", -1),
    ("TBT", 1.92, "tbt_s.all.mean", -1),
    ("response time", 9.8, "e2e_s.all.mean", -1),
    ("prefill throughput", 8.2, "prefill_tokens_per_s", 1),
    ("decode throughput", 5.2, "decode_tokens_per_s", 1),
)
"""The paper's ratios over Sarathi-Serve, each "up to"."""
LIVE = ("mean TTFT, s", "p99 TTFT, s", "mean TBT, s", "mean E2E, s")
"""Figures that are compared with a live cluster; live / simulated."""


def newest(results: Path, part: str) -> Record | None:
    """The newest record of a part; None: there is none."""
    found = sorted(results.glob(f"*-evaluation-{part}.json"))
    if not found:
        return None
    made: Record = json.loads(found[-1].read_text(encoding="utf-8"))
    return made | {"file": found[-1].name}


def write_page(docs: Path, results: Path) -> None:
    """Make the tables and plots anew."""
    page = docs / "evaluation.md"
    records = {part: newest(results, part) for part in ("sets", "beside", "live")}

    def made(place: re.Match[str]) -> str:
        begin, kind, rest, end = place.groups()
        found = records[kind.partition("-")[0]]
        text = "Not measured yet." if found is None else KINDS[kind](found, rest)
        return f"{begin}\n{text}\n\n{end}"

    page.write_text(PLACE.sub(made, page.read_text(encoding="utf-8")), encoding="utf-8")
    if (sets := records["sets"]) is not None:
        draw(sets["points"], docs)


def value(summary: Record, name: str) -> float | None:
    """A figure of a summary, for example `ttft_s.short.p99`, in the unit of its title."""
    found = summary[name][0]
    return None if found is None else found * SCALES.get(name, 1.0)


def _source(found: Record) -> str:
    path = f"benchmarks/results/{found['file']}"
    return f"Record: [{found['file']}](../{path}), commit {found['commit']}, `{found['command']}`."


def _figure(found: Record, rest: str) -> str:
    """Tables of one figure: a row for each system, a column for each load; one for each set."""
    name, _, hardware = rest.partition(" ")
    parts = [_source(found)]
    for kind, what in found["sets"].items():
        points = [p for p in found["points"] if p["set"] == kind and p["hardware"] == hardware]
        if not points:
            continue
        unit = "sessions" if kind == "B" else "of what the cards can prefill"
        heads = [f"set {kind}: {TITLES[name]}", *(f"{p['load']:g} {unit}" for p in points)]
        rows = []
        for policy in found["policies"]:
            values = [value(p["summaries"][policy], name) for p in points]
            where = points[0]["arrangements"][policy]
            cells = [_cell(p, policy, name, v) for p, v in zip(points, values, strict=True)]
            rows.append([f"`{policy}`, {where}", *cells])
        parts.append(f"{what}:\n\n{_table(heads, rows)}")
    return "\n\n".join(parts)


def _cell(point: Record, policy: str, name: str, found: float | None) -> str:
    """A value; bold if it is better than that of `sps2` beyond doubt, in italics if it is worse."""
    text = "-" if found is None else _short(found)
    if policy in point["losses"].get(name, ()):
        return f"**{text}**"
    return f"*{text}*" if policy in point["wins"].get(name, ()) else text


def _losses(found: Record, rest: str) -> str:
    """Where another system is better than `sps2` beyond doubt, in sets A to C."""
    rows, judged = [], 0
    for point in found["points"]:
        if point["set"] == "D":
            continue
        for name, systems in point["losses"].items():
            judged += 1
            if systems:
                own = value(point["summaries"]["sps2"], name)
                texts = [
                    f"{each} {_short(value(point['summaries'][each], name) or 0)}"
                    for each in systems
                ]
                rows.append(
                    [
                        point["hardware"],
                        point["set"],
                        f"{point['load']:g}",
                        TITLES[name],
                        _short(own or 0),
                        "; ".join(texts),
                    ]
                )
    heads = ("cards", "set", "load", "figure", "sps2", "better")
    summary = (
        f"Of {judged} figures (cards, sets A to C, loads, five figures each), `sps2` is the best "
        f"or within the interval of the best in {judged - len(rows)}. The others:"
    )
    return f"{summary}\n\n{_table(heads, rows)}" if rows else summary.replace(" The others:", "")


def _ratios(found: Record, rest: str) -> str:
    """The paper's five ratios, and the largest of ours with its setting."""
    rows = []
    for what, paper, name, sign in PAPER:
        best: tuple[float, str] = (0.0, "-")
        for point in found["points"]:
            if point["set"] != "A":
                continue
            own = value(point["summaries"]["sps2"], name)
            other = value(point["summaries"]["sarathi"], name)
            if own and other:
                where = f"{point['hardware']}, load {point['load']:g}"
                best = max(best, ((own / other) ** sign, where))
        rows.append([what, f"{paper:g}", _short(best[0]), best[1]])
    return _table(("over Sarathi-Serve, up to", "paper", "here", "where"), rows)


def _beside(found: Record, rest: str) -> str:
    rows = [
        [
            row["hardware"],
            row["system"],
            f"{row['rate']:g}",
            f"{_short(row['short_ttft_s']['p99']['value'])} ({row['short']})",
            _short(row["long_alone_s"]),
            _short(row["long_beside_s"]),
            f"{row['long_beside_s'] / row['long_alone_s']:.2f}",
        ]
        for row in found["rows"]
    ]
    heads = (
        "cards",
        "system",
        "short ones a second",
        "their p99 TTFT, s (number)",
        "long alone, s",
        "beside, s",
        "ratio",
    )
    return f"{_source(found)}\n\n{_table(heads, rows)}"


def _live(found: Record, rest: str) -> str:
    """A row for each configuration and workload: live, simulated, and the error."""
    rows = []
    for row in found["rows"]:
        figures = {each["name"]: each for each in row["figures"]}
        sent = [each for name, each in figures.items() if name.startswith("bytes")]
        worst = max((abs(each["error"] or 0.0) for each in sent), default=0.0)
        texts = []
        for name in LIVE:
            each = figures[name]
            texts.append(
                f"{_short(each['live'])} / {_short(each['simulated'])} ({each['error']:+.0%}, "
                f"{each['low']:+.0%} to {each['high']:+.0%})"
            )
        slower = f"{row['slower']:.2f}" if "slower" in row else ""
        rows.append([row["configuration"], row["workload"], *texts, f"{worst:.1%}", slower])
    heads = ("configuration", "workload", *LIVE, "largest error of bytes by kind", "slowed by")
    ranks = [
        f"{name}: rank correlation of mean TTFT {each['spearman']:.2f}; the best live is "
        f"`{each['live'][0]}`, the best simulated `{each['simulated'][0]}`."
        for name, each in found["ranking"].items()
    ]
    return "\n\n".join([_source(found), _table(heads, rows), *ranks])


KINDS: dict[str, Callable[[Record, str], str]] = {
    "sets-figure": _figure,
    "sets-losses": _losses,
    "sets-ratios": _ratios,
    "beside": _beside,
    "live": _live,
}


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = [f"| {' | '.join(line)} |" for line in [heads, *rows]]
    return "\n".join([text[0], "|---" * len(heads) + "|", *text[1:]])
