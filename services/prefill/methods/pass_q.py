"""pass-Q: queries are sent to the ranks that have the keys and values, states come back."""

from functools import partial

from torch import Tensor

from sps2.common.transport.expected import Like
from sps2.kernels import State
from sps2.services.prefill.group import Group
from sps2.services.prefill.methods.partial_attention import Seen, needed
from sps2.services.tasks import gather_all


class PassQ:
    """The `Attention` of one rank: sends its queries to every rank with keys that they see.

    Source: Context Parallelism for Scalable Million-Token Inference (arXiv 2411.01783), pass-Q,
    with direct sends in place of the ring, so that each state comes back in one hop.
    """

    def __init__(self, group: Group) -> None:
        self._group = group

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> State:
        group = self._group
        window = group.config.window(layer)
        others = [rank for rank in range(group.ranks) if rank != group.rank]
        sources = [of for of in others if needed(group.rows[of], group.mine, window)]
        askers = [of for of in others if needed(group.mine, group.rows[of], window)]
        seen = Seen(q, group.mine, group.config.scale, window)
        own = partial(seen.attend, k, v, group.mine)
        answers = [self._answer(layer, asker, k, v) for asker in askers]
        asks = [self._take(layer, of, q, seen) for of in sources]
        if sources:
            asks.append(group.send_all(sources, "q", layer, 0, (q,)))
        if group.scheme.pipelined:
            for answer in answers:
                group.background(layer, (k, v), answer)
            await gather_all(group.compute(own, layer), *asks)
        else:
            await gather_all(*answers, *asks)
            await group.compute(own, layer)
        return await group.compute(seen.state, layer)

    async def _take(self, layer: int, of: int, q: Tensor, seen: Seen) -> None:
        group = self._group
        state = await group.recv_state(of, layer, 0, len(q), group.config.heads, q.dtype)
        await group.compute(partial(seen.add, state), layer)

    async def _answer(self, layer: int, asker: int, k: Tensor, v: Tensor) -> None:
        group = self._group
        shape = (group.tokens(asker), group.config.heads, group.config.head_dim)
        (q,) = await group.recv(asker, "q", layer, 0, (Like(k.dtype, shape),))

        def work() -> State:
            seen = Seen(q, group.rows[asker], group.config.scale, group.config.window(layer))
            seen.attend(k, v, group.mine)
            return seen.state()

        await group.send(asker, "state", layer, 0, await group.compute(work, layer))
