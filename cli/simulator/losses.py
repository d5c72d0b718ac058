"""Shards that are lost in a simulation, as a user writes them."""

import re
from collections.abc import Sequence

from sps2.cli.simulator.simulation import Loss
from sps2.common.errors import Invalid

NEVER_S = 1e9
"""A shard that is not said to come back is away for so long."""


def parse_losses(texts: Sequence[str]) -> list[Loss]:
    """Losses from texts such as `decode-0@60` and `decode-0@60+30`. Raises Invalid.

    Losses of one shard that overlap are one.
    """
    found: list[Loss] = []
    for text in texts:
        match = re.fullmatch(r"((?:prefill|decode|mixed)-\d+)@(\d+\.?\d*)(?:\+(\d+\.?\d*))?", text)
        if match is None:
            raise Invalid(f"--lose {text!r}: write SHARD@SECONDS or SHARD@SECONDS+SECONDS")
        shard, at_s, for_s = match.groups()
        found.append(Loss(shard, float(at_s), NEVER_S if for_s is None else float(for_s)))
    joined: list[Loss] = []
    for loss in sorted(found):
        before = joined[-1] if joined else None
        if before and before.shard == loss.shard and loss.at_s <= before.at_s + before.for_s:
            until_s = max(before.at_s + before.for_s, loss.at_s + loss.for_s)
            joined[-1] = Loss(loss.shard, before.at_s, until_s - before.at_s)
        else:
            joined.append(loss)
    return joined
