"""What a plan costs each of its shards, by a profile."""

from typing import NamedTuple

from sps2.cli.simulator.profile import Profile
from sps2.common.model.config import ModelConfig
from sps2.services.scheduler.plan import Plan
from sps2.services.scheduler.rates import EXPECTED_WORK, IN_A_ROW


class RankCost(NamedTuple):
    """Of one rank of a prefill.

    rows, pairs: as in `Profile.prefill_s`. exchanged: bytes over its link with the other ranks, in
    the busier direction. deposited: bytes of KV by the shard that they are sent to.
    """

    rows: int
    pairs: float
    exchanged: float
    deposited: dict[str, int]

    def seconds(self, profile: Profile, ranks: int) -> float:
        """Of computing, on one thread."""
        return profile.prefill_s(self.rows, self.pairs) + profile.share_s * (ranks > 1)


class Costs:
    """Costs of plans for one model.

    Args:
        itemsize: bytes of an activation, of a key or value at rest and on its way.
    """

    def __init__(self, model: ModelConfig, itemsize: int) -> None:
        self._kv_bytes = model.kv_bytes(itemsize)
        q = model.layers * model.heads * model.head_dim * itemsize
        self.q_bytes = q
        """Of one token, to one holder."""
        self.state_bytes = q + 4 * model.layers * model.heads
        """Of one token, from one holder: the output and log-sum-exps in float32."""

    def ranks(self, plan: Plan) -> list[RankCost]:
        """What each rank of a plan's chunk does."""
        partition, before = plan.partition, plan.chunk.start
        ranks = len(plan.group)
        is_row = partition.scheme.method in IN_A_ROW
        earlier = EXPECTED_WORK if partition.scheme.method == "csa" else 1.0
        pairs = [
            sum(
                span.tokens * (span.tokens / 2 + (span.start - before) * earlier)
                for span in own
                if span.tokens
            )
            for own in partition.spans
        ]
        if not is_row:
            pairs = [sum(pairs) / ranks] * ranks
        behind = self.behind(plan)
        moved = sum(partition.predicted_bytes.values()) / ranks * (1 + is_row)
        kept = [(place.shard, place.span) for place in plan.placements if place.span.tokens]
        return [
            RankCost(
                sum(span.tokens for span in own),
                mine + behind.get(rank, 0.0),
                moved if ranks > 1 or before else 0.0,
                {
                    shard: nbytes
                    for shard, keeps in kept
                    if shard != rank
                    and (nbytes := self._kv_bytes * sum((s & keeps).tokens for s in own))
                },
            )
            for rank, own, mine in zip(plan.group, partition.spans, pairs, strict=True)
        ]

    @staticmethod
    def behind(plan: Plan) -> dict[str, float]:
        """Pairs of the attention to what was computed before a chunk, by the shard that keeps it.

        Those shards attend, all at once: ranks themselves, or others beside the ranks.
        """
        before = plan.chunk.start
        if not before:
            return {}
        return {
            shard: float(plan.chunk.tokens * sum(span.tokens for span in spans))
            for shard, spans in plan.before(before).items()
        }
