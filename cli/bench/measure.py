"""Runs settings on documents, and compares each with exact attention on one rank."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from sps2.cli.bench.answer import predicted
from sps2.cli.bench.compare import Rows, compare, joined, summary
from sps2.cli.bench.group import Filled, even, fill
from sps2.cli.bench.needles import Prompt
from sps2.cli.bench.results import Found, Measured, Traffic
from sps2.cli.bench.settings import EXACT, scheme_of
from sps2.common.config import Sharing
from sps2.common.messages import Scheme
from sps2.common.model.config import ModelConfig
from sps2.common.model.llama import Llama
from sps2.common.spans import Span
from sps2.services.scheduler.csa_thresholds import Calibration
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.traffic import loads

BFLOAT16 = 2
"""Bytes per number on the wire in the reference."""
MEASURED, LAST = 0.75, 0.25
"""Shares of the document's tokens, from its end, that are compared."""

Spans = Sequence[tuple[Span, ...]]
Progress = Callable[[str], None]
Key = tuple[int, str]
"""Ranks and setting."""


class Work(NamedTuple):
    """What to measure. With `even` all spans have equal size, else they are the scheduler's."""

    model: Llama
    settings: Sequence[str]
    ranks: Sequence[int]
    even: bool = False
    calibration: Calibration | None = None


def measure(
    work: Work, tokens: int, documents: dict[str, list[Prompt]], say: Progress
) -> Iterator[Measured]:
    """Measure each document with each number of ranks and setting, then all documents pooled.

    Args:
        tokens: length of the prompts.
        documents: prompts by document. Distributions are compared on the first prompt of each,
            needles are looked for in all.
    """
    pool: dict[Key, list[tuple[Measured, Rows]]] = {}
    for name, prompts in documents.items():
        for key, case, rows in _document(work, tokens, name, prompts, say):
            pool.setdefault(key, []).append((case, rows))
            yield case
    for parts in pool.values():
        yield _pooled(parts)


def _document(
    work: Work, tokens: int, name: str, prompts: Sequence[Prompt], say: Progress
) -> Iterator[tuple[Key, Measured, Rows]]:
    keys = [(ranks, setting) for ranks in work.ranks for setting in work.settings]
    needles: dict[Key, list[Found]] = {key: [] for key in keys}
    first: dict[Key, tuple[Filled, Scheme, Spans]] = {}
    exact: Filled | None = None
    for number, prompt in enumerate(prompts, 1):
        keep = prompt.needle is not None
        say(f"{name}, {tokens} tokens, prompt {number} of {len(prompts)}: exact")
        one = fill(work.model, prompt.ids, EXACT, 1, keep=keep)
        exact = exact or one._replace(keys=[], values=[])
        right = _right(work.model, one, prompt)
        for key in keys:
            ranks, setting = key
            say(f"{name}, {tokens} tokens, prompt {number}, {ranks} ranks: {setting}")
            scheme = scheme_of(
                setting, work.model.config.layers, len(prompt.ids), ranks, work.calibration
            )
            spans = _spans(work, len(prompt.ids), ranks, scheme)
            filled = fill(work.model, prompt.ids, scheme, ranks, spans=spans, keep=keep)
            if prompt.needle is not None:
                kept = _right(work.model, filled, prompt)
                needles[key].append(_found(prompt, prompt.needle.depth, right, kept))
            first.setdefault(key, (filled._replace(keys=[], values=[]), scheme, spans))
    assert exact is not None
    say(f"{name}, {tokens} tokens: comparing")
    document = prompts[0].document
    part = range(document.stop - round(MEASURED * len(document)), document.stop)
    hidden = [filled.hidden for filled, _, _ in first.values()]
    compared = compare(work.model, prompts[0].ids, exact.hidden, hidden, part)
    for (key, (filled, scheme, spans)), rows in zip(first.items(), compared, strict=True):
        ranks, setting = key
        yield (
            key,
            Measured(
                setting,
                tokens,
                ranks,
                name,
                summary(rows),
                summary(_last(rows)),
                _traffic(work, filled, scheme, len(prompts[0].ids), ranks, spans),
                tuple(sum(span.tokens for span in each) for each in spans),
                sum(each.blocks for each in filled.exchanged),
                sum(each.kept_blocks for each in filled.exchanged),
                _lost(filled),
                filled.attention_s,
                exact.attention_s,
                tuple(needles[key]),
            ),
            rows,
        )


def _last(rows: Rows) -> Rows:
    return rows.last(LAST / MEASURED)


def _spans(work: Work, tokens: int, ranks: int, scheme: Scheme) -> Spans:
    if work.even or scheme.method not in ("gather", "csa", "strided", "star"):
        return even(tokens, ranks, scheme)
    layers = work.model.config.layers
    # methods that the scheduler does not know get the spans of CSA, for comparison
    like = scheme if scheme.method in ("gather", "csa") else scheme_of("csa", layers)
    schemes = Schemes(work.model.config, BFLOAT16, Sharing())
    return schemes.partition(like, tokens, ranks).spans


def _traffic(
    work: Work, filled: Filled, scheme: Scheme, tokens: int, ranks: int, spans: Spans
) -> Traffic:
    config: ModelConfig = work.model.config
    ring = Scheme("ring")
    causal = spans if len(spans[0]) == 1 else _spans(work, tokens, ranks, EXACT)
    return Traffic(
        filled.sent_bytes,
        sum(loads(config, BFLOAT16, EXACT, causal).by_purpose.values()),
        sum(loads(config, BFLOAT16, ring, even(tokens, ranks, ring)).by_purpose.values()),
    )


def _right(model: Llama, filled: Filled, prompt: Prompt) -> list[bool]:
    """Which tokens of the answer the model predicts correctly."""
    if not prompt.answer:
        return []
    answer = [token for token, _ in prompt.answer]
    found = predicted(model, filled, answer)
    return [a == b for a, b in zip(found, answer, strict=True)]


def _found(prompt: Prompt, depth: float, right: list[bool], kept: list[bool]) -> Found:
    digits = [count for _, count in prompt.answer]
    return Found(
        depth,
        sum(digits),
        sum(count for count, ok in zip(digits, right, strict=True) if ok),
        sum(count for count, a, b in zip(digits, right, kept, strict=True) if a and b),
    )


def _lost(filled: Filled) -> float:
    consumers = [each.lost for each in filled.exchanged[1:] if each.lost]
    return float(torch.tensor(consumers).mean()) if consumers else 0.0


def _pooled(parts: list[tuple[Measured, Rows]]) -> Measured:
    cases = [case for case, _ in parts]
    first = cases[0]
    purposes = {purpose for case in cases for purpose in case.traffic.sent}
    return Measured(
        first.setting,
        first.tokens,
        first.ranks,
        "",
        summary(joined([rows for _, rows in parts])),
        summary(joined([_last(rows) for _, rows in parts])),
        Traffic(
            {p: sum(case.traffic.sent.get(p, 0) for case in cases) for p in sorted(purposes)},
            sum(case.traffic.causal for case in cases),
            sum(case.traffic.ring for case in cases),
        ),
        first.spans,
        sum(case.blocks for case in cases),
        sum(case.kept_blocks for case in cases),
        sum(case.lost for case in cases) / len(cases),
        sum(case.attention_s for case in cases),
        sum(case.exact_attention_s for case in cases),
        tuple(found for case in cases for found in case.needles),
    )
