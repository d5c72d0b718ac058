"""The tables that a person reads; imports no torch."""

from collections.abc import Iterator

from rich.console import RenderableType

from sps2.cli import render
from sps2.cli.bench.results import Measured, Quality, Report


def tables_of(report: Report) -> Iterator[RenderableType]:
    """One table for each length and number of ranks, a row for each setting, and what it means."""
    groups = dict.fromkeys((each.tokens, each.ranks) for each in report.pooled)
    for tokens, ranks in groups:
        made = render.table(
            "setting",
            *(f">{name}" for name in ("ppl %", "last 25 %", "KL", "top-1 %", "digits")),
            *(f">{name}" for name in ("kept %", "lost %", "bytes", "of ring", "attention")),
        )
        made.title = f"{tokens} tokens, {ranks} ranks"
        made.title_justify = "left"
        for each in report.pooled:
            if (each.tokens, each.ranks) == (tokens, ranks):
                made.add_row(*_row(each))
        yield made
    yield (
        f"\n{report.model}, {report.dtype}; {', '.join(report.documents)}\n"
        "ppl: change of perplexity over the last 75 % of tokens ± standard error. digits: of those "
        "that exact\nattention gets right, kept. kept: blocks; lost: mass. bytes: against exact "
        "attention's in bfloat16, keys\nand values sent once to each later rank; of ring: round "
        "the ring. attention: arithmetic against one rank's."
    )


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
