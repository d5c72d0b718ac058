"""The static sparse pattern of the code released with CSPS, a baseline for CSA."""

from functools import partial

import torch
from torch import Tensor

from sps2.common.transport.expected import Like
from sps2.kernels import Run, State, attention, empty_state
from sps2.services.prefill.group import Group
from sps2.services.prefill.methods.partial_attention import Rows, Seen
from sps2.services.tasks import gather_all


class Strided:
    """The `Attention` of one rank: all of its own keys, and every r-th key of earlier ranks.

    KV head h sees the tokens x of earlier ranks with x = h (mod r), and only from queries of the
    same residue. All other queries see only their own rank's keys. Spans are consecutive. Source:
    multi-level dilated attention as released with CSPS (arXiv 2409.15104), levels (group 1,
    stride 1) and (group N, stride r), with keys and values moved instead of heads.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        selection = group.scheme.selection
        share = selection.budget if selection is not None else None
        self._stride = max(1, round(1 / (share or 0.25)))

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> State:
        group = self._group
        kv_heads = group.config.kv_heads

        for consumer in range(group.rank + 1, group.ranks):
            for head in range(kv_heads):
                rows = self._rows(head, group.rank)
                tensors = (k[rows, head], v[rows, head])
                group.background(layer, tensors, group.send(consumer, "kv", layer, head, tensors))
        seen = Seen(q, group.mine, group.config.scale, group.config.window(layer))
        await group.compute(partial(seen.attend, k, v, group.mine), layer)
        for owner in range(group.rank):
            came = await gather_all(
                *(self._recv(layer, owner, head, k) for head in range(kv_heads))
            )
            await group.compute(partial(self._far, q, came, seen), layer)
        return await group.compute(seen.state, layer)

    async def _recv(self, layer: int, owner: int, head: int, k: Tensor) -> tuple[Tensor, ...]:
        like = Like(k.dtype, (len(self._rows(head, owner)), k.shape[-1]))
        return await self._group.recv(owner, "kv", layer, head, (like, like))

    def _rows(self, head: int, rank: int) -> Tensor:
        """The rows of a rank whose positions have the residue of a head."""
        positions = _positions(self._group.rows[rank])
        (rows,) = self._group.up((positions % self._stride == head % self._stride).nonzero()[:, 0])
        return rows

    def _far(self, q: Tensor, came: list[tuple[Tensor, ...]], seen: Seen) -> None:
        tokens, heads, dim = q.shape
        size = heads // self._group.config.kv_heads
        out, lse = empty_state(tokens, heads, dim, q.device)
        for head, (k, v) in enumerate(came):
            rows = self._rows(head, self._group.rank)
            mine = slice(head * size, (head + 1) * size)
            out[rows, mine], lse[rows, mine] = attention(
                q[rows, mine],
                k[:, None],
                v[:, None],
                queries=[Run(0, 0, len(rows))],
                keys=[Run(0, -len(k), len(k))],
                scale=self._group.config.scale,
            )
        seen.add(State(out, lse))


def _positions(rows: list[Rows]) -> Tensor:
    return torch.cat([torch.arange(*span) for span, _ in rows])
