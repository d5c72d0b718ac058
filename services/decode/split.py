"""Attention of a decode batch whose keys and values lie on several shards."""

import asyncio
from collections.abc import Sequence

import torch
from torch import Tensor

from sps2.common.model.config import ModelConfig
from sps2.common.model.pages import PagePool
from sps2.kernels import State, merge, paged_attention
from sps2.services.decode.exchange import Exchange, positions_tensor
from sps2.services.decode.sequence import Sequence as Running


class SplitAttention:
    """The `Attend` of one decode step at the owner: q moves, KV stays, states are merged.

    Source: SP decode of CSPS (arXiv 2409.15104) and LoongServe's multi-master decoding
    (arXiv 2404.09526, section 4).
    """

    def __init__(
        self,
        config: ModelConfig,
        pool: PagePool,
        exchange: Exchange,
        batch: Sequence[Running],
        step: int,
    ) -> None:
        self._config = config
        self._pool = pool
        self._exchange = exchange
        self._batch = batch
        self._step = step
        self._positions = [each.position for each in batch]
        self._slots = torch.tensor([each.slot for each in batch])
        self._runs = [each.holding.pages.runs(each.position + 1) for each in batch]
        self._remote: dict[str, list[int]] = {}
        for row, each in enumerate(batch):
            for holder in each.holders:
                self._remote.setdefault(holder, []).append(row)

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._pool.append(layer, self._slots, k, v)
        if not self._remote:
            await asyncio.sleep(0)  # holders answer others between the layers of their own steps
            return self._attend(layer, q)[0].to(q.dtype)

        async with asyncio.TaskGroup() as group:
            asked = [
                (rows, group.create_task(self._ask(holder, rows, layer, q)))
                for holder, rows in self._remote.items()
            ]
            await asyncio.sleep(0)  # let q leave before attending here
            out, lse = self._attend(layer, q)
        for rows, task in asked:
            out[rows], lse[rows] = merge(State(out[rows], lse[rows]), task.result())
        return out.to(q.dtype)

    def _attend(self, layer: int, q: Tensor) -> State:
        k, v = self._pool.layer(layer)
        return paged_attention(
            q,
            k,
            v,
            self._runs,
            self._positions,
            scale=self._config.scale,
            window=self._config.window(layer),
        )

    async def _ask(self, holder: str, rows: list[int], layer: int, q: Tensor) -> State:
        keys = [self._batch[row].holding.key for row in rows]
        positions = positions_tensor([self._positions[row] for row in rows])
        mine = q if len(rows) == len(self._batch) else q[rows]
        state = await self._exchange.ask(holder, keys, positions, layer, self._step, mine)
        for row in rows:
            self._batch[row].count_exchange(mine[0].nbytes, state[0][0].nbytes + state[1][0].nbytes)
        return state
