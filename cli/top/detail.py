"""The detail of one request: where its time went, and where its KV is."""

from rich.text import Text

from sps2.cli.top.format import (
    QUIET,
    UNKNOWN,
    Column,
    bar,
    count,
    elapsed,
    head,
    latency,
    line,
    percent,
    short,
)
from sps2.cli.top.snapshot import Request
from sps2.cli.top.stages import COLOURS, course, label


def detail(request: Request, width: int) -> list[Text]:
    """Lines with all that is known of a request."""
    size = min(60, width - 32)
    columns = [Column("", LABELS), Column("", width - LABELS - 4)]
    lines = [
        line(columns, [("REQUEST", f"bold {QUIET}"), (request.request, "bold")]),
        Text(),
        line(
            [Column("", size), Column("", 24)],
            [course(request, size), label(request)],
        ),
        Text(),
        *_stages(request, size),
        Text(),
    ]
    for name, value in _facts(request):
        lines.append(line(columns, [(name, QUIET), value]))
    return lines


LABELS = 12


def _stages(request: Request, size: int) -> list[Text]:
    columns = [Column("STAGE", 10), Column("TIME", 7, True), Column("OF ALL", 6, True)]
    columns.append(Column("", size))
    rows = []
    for stage in request.stages:
        share = stage.seconds / request.age_s if request.age_s else 0.0
        strip = bar(size, share, COLOURS[stage.name]) if share >= 0.005 else Text()
        rows.append(
            line(columns, [stage.name, latency(stage.seconds), percent(share), strip]),
        )
    return [head(columns), *rows]


def _facts(request: Request) -> list[tuple[str, str]]:
    owner = request.holders[-1:] if not request.owner else (request.owner,)
    facts = [
        ("age", elapsed(request.age_s)),
        ("prompt", f"{count(request.prompt_tokens)} tokens, {count(request.cached_tokens)} cached"),
        ("answer", f"{count(request.tokens)} tokens of at most {count(request.max_tokens)}"),
        ("prefill", f"{request.attention or UNKNOWN} by {request.method or UNKNOWN}"),
        ("on", " ".join(request.group) or UNKNOWN),
        (
            "exchanged",
            f"{short(request.exchange_bytes)} bytes, {percent(request.hidden)} hidden",
        ),
        ("owner", " ".join(owner) or UNKNOWN),
        ("planned", "once" if not request.epoch else f"{request.epoch + 1} times"),
    ]
    places = [
        f"{place.shard} {' '.join(f'{span.start}-{span.stop}' for span in spans)}"
        for place in request.placements
        if (spans := [span for span in (*place.shared, place.span) if span.tokens])
    ]
    facts.append(("KV", ", ".join(places) or " ".join(request.holders) or UNKNOWN))
    if request.waits_for:
        facts.append(("waits for", request.waits_for))
    if request.error:
        facts.append(("error", request.error))
    return facts
