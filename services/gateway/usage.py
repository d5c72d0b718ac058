"""Adds up what the choices of one answer actually used."""

from collections import Counter
from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from sps2.common.api import ChatRequest, CompletionRequest
from sps2.common.api.usage import Part, PromptTokensDetails, Sps2Usage, Usage
from sps2.common.messages import Placement
from sps2.services.gateway.generate import Job, Record
from sps2.services.gateway.validate import Order


def usage(
    prompts: Sequence[Sequence[int]], jobs: Sequence[Job], records: Sequence[Record], kv: int
) -> Usage:
    """The usage of an answer.

    Args:
        prompts: token ids of each prompt; a prompt with several choices counts once.
        kv: bytes of one token's keys and values in all layers.
    """
    pairs = list(zip(jobs, records, strict=True))
    prompt_tokens = sum(len(prompt) for prompt in prompts)
    completion_tokens = sum(record.tokens for job, record in pairs if not job.silent)
    first_choices = records[:: len(records) // len(prompts)]
    return Usage(
        prompt_tokens,
        completion_tokens,
        prompt_tokens + completion_tokens,
        PromptTokensDetails(cached_tokens(first_choices)),
        _sps2(pairs, kv),
    )


class UsageSoFar:
    """The usage so far, for each chunk; UNSET unless the request wants it."""

    def __init__(
        self, request: CompletionRequest | ChatRequest, order: Order, records: Sequence[Record]
    ) -> None:
        options = request.stream_options
        self._wanted = bool(options and options.include_usage and options.continuous_usage_stats)
        self._prompt_tokens = sum(map(len, order.prompts))
        self._order = order
        self._firsts = records[:: len(records) // len(order.prompts)]
        self._made = 0

    def add(self, index: int) -> None:
        """Count a token of choice `index`."""
        self._made += not self._order.jobs[index].silent

    def usage(self) -> Usage | UnsetType:
        if not self._wanted:
            return UNSET
        prompt, cached = self._prompt_tokens, PromptTokensDetails(cached_tokens(self._firsts))
        return Usage(prompt, self._made, prompt + self._made, cached)


def totals(usage: Usage) -> dict[str, str | float]:
    """The totals of a whole request, for its trace."""
    found: dict[str, str | float] = {
        "prompt_tokens": usage.prompt_tokens,
        "tokens": usage.completion_tokens,
    }
    return found if usage.sps2 is None else found | {"ttft_s": usage.sps2.ttft_ms / 1000}


def _sps2(pairs: Sequence[tuple[Job, Record]], kv: int) -> Sps2Usage | None:
    records = [record for _, record in pairs]
    placed = records[0].placed
    if placed is None:
        return None
    ranks = [each for record in records if record.first for each in record.first.exchanged]
    later = [n for record in records if record.first for n in record.first.later_degrees]
    purposes: Counter[str] = Counter()
    for each in ranks:
        purposes.update(each.sent_bytes)
    blocks = sum(each.blocks for each in ranks)
    lost = [mass for each in ranks for mass in each.lost]
    exchange_s = sum(each.exchange_s for each in ranks)
    finished = [record.finished for record in records if record.finished]
    is_known = len(finished) == len(records)
    q_bytes = sum(each.q_bytes for each in finished) if is_known else None
    state_bytes = sum(each.state_bytes for each in finished) if is_known else None
    deposit = sum(each.deposit_bytes for each in finished) if is_known else None
    return Sps2Usage(
        sp_degree=max(*(record.placed.sp_degree for record in records if record.placed), *later, 1),
        chunks=len(records) + len(later),
        attention=placed.attention,
        method=placed.scheme.method,
        prefill_bytes=None if deposit is None else purposes.total() + deposit,
        decode_bytes=None if q_bytes is None or state_bytes is None else q_bytes + state_bytes,
        kv_bytes_exact=sum(len(job.prompt) for job, _ in pairs) * kv,
        kept_fraction=sum(each.kept_blocks for each in ranks) / blocks if blocks else 1.0,
        lost_mass=sum(lost) / len(lost) if lost else 0.0,
        ttft_ms=round(1000 * min(record.ttft_s for record in records), 3),
        cached_tokens=cached_tokens(records),
        exchange_bytes=purposes.total(),
        exchange_bytes_by_purpose=dict(purposes),
        predicted_exchange_bytes=sum(map(_predicted_bytes, records)),
        prefill_s=max((record.first.prefill_s for record in records if record.first), default=0.0),
        compute_s=sum(each.compute_s for each in ranks),
        attention_s=sum(each.attention_s for each in ranks),
        exchange_s=exchange_s,
        hidden_fraction=sum(each.hidden_s for each in ranks) / exchange_s if exchange_s else 0.0,
        deposit_bytes=deposit,
        saved_bytes=sum(each.saved_bytes for each in ranks)
        + sum(each.deposit_saved_bytes for each in finished)
        if is_known
        else None,
        q_bytes=q_bytes,
        state_bytes=state_bytes,
        migration_pays_after=placed.migration_pays_after,
        owner=placed.owner,
        placements=tuple(part for each in placed.placements for part in _parts(each)),
        epoch=placed.epoch,
    )


def cached_tokens(records: Sequence[Record]) -> int:
    """Tokens of the prompts whose KV was cached, of the records that are placed."""
    return sum(record.placed.cached_tokens for record in records if record.placed)


def _predicted_bytes(record: Record) -> int:
    first = sum(record.placed.predicted_bytes.values()) if record.placed else 0
    return first + (record.first.later_predicted_bytes if record.first else 0)


def _parts(place: Placement) -> list[Part]:
    own = (place.span,) if place.span.tokens else ()
    return [Part(place.shard, span) for span in (*place.shared, *own)]
