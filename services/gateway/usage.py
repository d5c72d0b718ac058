"""Adds up what the choices of one answer really took."""

from collections.abc import Sequence

from sps2.common.api import Part, Sps2Usage, Usage
from sps2.services.gateway.generate import Job, Record


def usage(
    prompts: Sequence[Sequence[int]], jobs: Sequence[Job], records: Sequence[Record], kv: int
) -> Usage:
    """The usage of an answer.

    Args:
        prompts: the token ids of each; a prompt with several choices counts once.
        kv: bytes of one token's keys and values in all layers.
    """
    pairs = list(zip(jobs, records, strict=True))
    prompt_tokens = sum(len(prompt) for prompt in prompts)
    completion_tokens = sum(record.tokens for job, record in pairs if not job.silent)
    return Usage(
        prompt_tokens,
        completion_tokens,
        prompt_tokens + completion_tokens,
        _sps2(pairs, kv),
    )


def _sps2(pairs: Sequence[tuple[Job, Record]], kv: int) -> Sps2Usage | None:
    records = [record for _, record in pairs]
    placed = records[0].placed
    if placed is None:
        return None
    exchange = sum(record.first.exchange_bytes for record in records if record.first)
    deposit = sum(record.first.deposit_bytes for record in records if record.first)
    finished = [record.finished for record in records if record.finished]
    is_known = len(finished) == len(records)
    q_bytes = sum(each.q_bytes for each in finished) if is_known else None
    state_bytes = sum(each.state_bytes for each in finished) if is_known else None
    decode = None if q_bytes is None or state_bytes is None else q_bytes + state_bytes
    return Sps2Usage(
        sp_degree=max(record.placed.sp_degree for record in records if record.placed),
        attention="exact",
        prefill_bytes=exchange + deposit,
        decode_bytes=decode,
        kv_bytes_exact=sum(len(job.prompt) for job, _ in pairs) * kv,
        kept_fraction=1.0,
        ttft_ms=round(1000 * min(record.ttft_s for record in records), 3),
        cached_tokens=0,
        exchange_bytes=exchange,
        deposit_bytes=deposit,
        q_bytes=q_bytes,
        state_bytes=state_bytes,
        owner=placed.owner,
        placements=tuple(Part(each.shard, each.span) for each in placed.placements),
        epoch=placed.epoch,
    )
