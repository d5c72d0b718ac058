"""Star Attention, a baseline for CSA."""

from functools import partial

from torch import Tensor

from sps2.common.transport.expected import Like
from sps2.kernels import State
from sps2.services.prefill.group import Group
from sps2.services.prefill.methods.partial_attention import Rows, Seen, needed
from sps2.services.tasks import gather_all

QUERY_ROWS = 64
"""The last rows of the prompt, which see all keys, as the query block does in the paper."""


class Star:
    """The `Attention` of one rank: its own keys and those of the first rank, the anchor.

    The last rows of the prompt see all keys: the last rank sends their queries to the others. Spans
    are consecutive. Source: Star Attention (arXiv 2411.17116). The paper computes the anchor's keys
    again on every rank; here they are sent, which gives the same numbers.
    """

    def __init__(self, group: Group) -> None:
        self._group = group

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> State:
        group = self._group
        window = group.config.window(layer)
        last = group.ranks - 1
        if group.rank == 0:
            if others := range(1, group.ranks):
                push = group.send_all(others, "kv", layer, 0, (k, v))
                group.background(layer, (k, v), push)
        elif group.rank < last:
            group.background(layer, (k, v), self._answer(layer, k, v))

        seen = Seen(q, group.mine, group.config.scale, window)
        await group.compute(partial(seen.attend, k, v, group.mine), layer)
        if group.rank:
            anchor = Like(k.dtype, (group.tokens(0), *k.shape[1:]))
            anchor_k, anchor_v = await group.recv(0, "kv", layer, 0, (anchor, anchor))
            await group.compute(partial(seen.attend, anchor_k, anchor_v, group.rows[0]), layer)
        if group.rank == last:
            between = [
                rank
                for rank in range(1, last)
                if needed(group.rows[rank], self._question(), window)
            ]
            await gather_all(*(self._ask(layer, rank, q, seen) for rank in between))
        return await group.compute(seen.state, layer)

    def _question(self) -> list[Rows]:
        """The last rows of the last rank, numbered from 0."""
        span = self._group.rows[-1][-1].span
        tokens = min(QUERY_ROWS, span.tokens)
        return [Rows(span._replace(start=span.stop - tokens), slice(0, tokens))]

    async def _ask(self, layer: int, rank: int, q: Tensor, seen: Seen) -> None:
        ((_, rows),) = self._question()
        await self._group.send(rank, "q", layer, 0, (q[-rows.stop :],))
        out, lse = await self._group.recv_state(rank, layer, 0, rows.stop, q.shape[1], q.dtype)
        whole = State(q.new_zeros(q.shape), lse.new_full(q.shape[:2], -float("inf")))
        whole.out[-rows.stop :], whole.lse[-rows.stop :] = out, lse
        seen.add(whole)

    async def _answer(self, layer: int, k: Tensor, v: Tensor) -> None:
        group = self._group
        window = group.config.window(layer)
        question = self._question()
        if not needed(group.mine, question, window):
            return
        shape = (question[0].span.tokens, group.config.heads, group.config.head_dim)
        (q,) = await group.recv(group.ranks - 1, "q", layer, 0, (Like(k.dtype, shape),))

        def work() -> State:
            seen = Seen(q, question, group.config.scale, window)
            seen.attend(k, v, group.mine)
            return seen.state()

        state = await group.compute(work, layer)
        await group.send(group.ranks - 1, "state", layer, 0, state)
