"""The results as tables; imports no torch."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table

from sps2.cli import render
from sps2.cli.bench.results import Measured, Quality, Report

QUALITY = ("ppl %", "last 25 %", "KL", "top-1 %", "digits")
COST = ("kept %", "lost %", "bytes", "of ring", "attention")
WIDE = 112
"""Terminal width from which on quality and cost are in one table."""


def tables_of(report: Report, width: int) -> Iterator[RenderableType]:
    """A table for each length and SP degree, with a row for each setting, then a legend."""
    halves = len(QUALITY)
    groups = dict.fromkeys((each.tokens, each.ranks) for each in report.pooled)
    for tokens, ranks in groups:
        rows = [
            _row(each) for each in report.pooled if (each.tokens, each.ranks) == (tokens, ranks)
        ]
        title = f"{tokens} tokens, SP degree {ranks}"
        if width >= WIDE:
            yield _table(title, (*QUALITY, *COST), rows)
        else:
            yield _table(f"{title}: quality", QUALITY, [row[: 1 + halves] for row in rows])
            cost = [(row[0], *row[1 + halves :]) for row in rows]
            yield _table(f"{title}: what is sent and computed", COST, cost)
    yield (
        f"\n{report.model}, {report.dtype}; {', '.join(report.documents)}\n"
        "ppl: change of perplexity over the last 75 % of tokens ± standard error. digits: of those "
        "that exact attention gets right, kept. kept: blocks; lost: mass. bytes: against exact "
        "attention's in bfloat16, keys and values sent once to each later shard; of ring: round "
        "the ring. attention: arithmetic against one shard's."
    )


def _table(title: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Table:
    made = render.table("setting", *(f">{name}" for name in columns))
    made.title, made.title_justify = title, "left"
    for row in rows:
        made.add_row(*row)
    return made


def _row(each: Measured) -> tuple[str, ...]:
    exact, kept = (sum(getattr(n, field) for n in each.needles) for field in ("exact", "kept"))
    sparse = each.blocks > 0
    return (
        each.setting,
        _change(each.whole),
        _change(each.last),
        f"{max(each.whole.kl, 0):.5f}",
        f"{each.whole.agreement:.2%}".rstrip("%"),
        f"{kept}/{exact}" if each.needles else "",
        f"{each.kept_blocks / each.blocks:.1%}".rstrip("%") if sparse else "",
        f"{each.lost:.2%}".rstrip("%") if sparse else "",
        _ratio(each.traffic.total, each.traffic.causal),
        _ratio(each.traffic.total, each.traffic.ring),
        _ratio(each.attention_s, each.exact_attention_s),
    )


def _change(quality: Quality) -> str:
    change, error = 100 * quality.perplexity_change, 100 * quality.perplexity_change_se
    return f"{change:+.2f} ± {error:.2f}"


def _ratio(part: float, whole: float) -> str:
    return f"{part / whole:.3f}" if whole else ""
