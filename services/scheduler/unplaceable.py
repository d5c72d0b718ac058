"""Requests that cannot be planned: absent shards, or pools that are too small even when empty."""

from dataclasses import replace

from sps2.common.errors import Invalid
from sps2.common.words import counted
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.fleet_state import Member
from sps2.services.scheduler.plan import Wait, Work


def grown(work: Work) -> Work:
    """A request that reserves room for its whole answer."""
    return replace(work, reserved_tokens=None)


def absent_of(wanted: int, work: Work, fleet: Fleet) -> Wait | None:
    """Why a request waits that wants more prefill shards than are present; None if it does not."""
    present = len(fleet.prefillers())
    if 0 < wanted <= present:
        return None
    what = f"sp_degree {work.options.sp_degree}" if work.options.sp_degree else "a request"
    return Wait("absent", f"{what} needs more {fleet.prefilling} shards than the {present} there")


def too_large(work: Work, pools: list[tuple[Member, int]], fleet: Fleet) -> Wait:
    """Why a request waits that does not fit even empty pools.

    Raises:
        Invalid: all shards are present, so that waiting cannot help.
    """
    tokens = sum(pages * member.shard.page_tokens for member, pages in pools)
    prompt = counted(work.prompt_tokens, "token")
    needs = f"{prompt} of prompt and up to {work.max_tokens} of answer"
    if not fleet.keeps_all():
        return Wait("absent", f"{needs} do not fit the {tokens} tokens of KV that are there")
    raise Invalid(
        f"{needs} do not fit the KV pools of the shards that may keep them, {tokens} tokens, with "
        "the answer on one of them; ask for fewer tokens or enlarge kv.pool_tokens",
        None,
        "context_length_exceeded",
    )
