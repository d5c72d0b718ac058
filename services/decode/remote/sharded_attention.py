"""Attention of a decode batch whose keys and values lie on several shards."""

import asyncio
from collections.abc import Sequence

import torch
from torch import Tensor

from sps2.common.model.config import ModelConfig
from sps2.common.model.pages import PagePool
from sps2.kernels import PagedRows, State, merge, merge_many, paged_attention
from sps2.services.decode.remote.exchange import Exchange, Question
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
        self._positions = [each.position for each in batch]
        runs = [each.holding.pages.runs(each.position + 1) for each in batch]
        self._rows = PagedRows(runs, self._positions)
        pool.counters.update(decode_keys=self._rows.keys, decode_keys_read=self._rows.keys_read)
        remote: dict[str, list[int]] = {}
        for row, each in enumerate(batch):
            for holder in each.holders:
                remote.setdefault(holder, []).append(row)
        self._questions = [
            (rows, self._question(holder, rows, step)) for holder, rows in remote.items()
        ]
        slots = torch.tensor([each.slot for each in batch])
        self._slots, *self._indices = exchange.device.up(
            [slots, *(torch.tensor(rows) for rows, _ in self._questions)]
        )
        """Of all rows; and the rows of each question, as lists would make a GPU wait in a layer."""

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self._questions:
            self._pool.put(layer, self._slots, k, v)
            await asyncio.sleep(0)  # a holder answers others between the layers of its own steps
            return self._attend(layer, q).out.to(q.dtype)

        with self._exchange.asking(layer, [question for _, question in self._questions]) as answers:
            for (_, question), index in zip(self._questions, self._indices, strict=True):
                await self._exchange.ask(question, layer, self._of(q, index))
            self._pool.put(layer, self._slots, k, v)
            mine = self._attend(layer, q)
            theirs = await answers()
        for (asked, _), state in zip(self._questions, theirs, strict=True):
            for row in asked:
                self._batch[row].count_exchange(
                    q[0].nbytes, state.out[0].nbytes + state.lse[0].nbytes
                )
        return self._merged(mine, theirs).out.to(q.dtype)

    def _question(self, holder: str, rows: list[int], step: int) -> Question:
        keys = [self._batch[row].holding.key for row in rows]
        return Question.about(holder, keys, [self._positions[row] for row in rows], step)

    def _of(self, q: Tensor, rows: Tensor) -> Tensor:
        return q if len(rows) == len(self._batch) else q[rows]

    def _merged(self, mine: State, theirs: Sequence[State]) -> State:
        if all(len(rows) == len(self._batch) for rows, _ in self._questions):
            return merge_many([mine, *theirs])
        out, lse = mine
        for rows, state in zip(self._indices, theirs, strict=True):
            out[rows], lse[rows] = merge(State(out[rows], lse[rows]), state)
        return mine

    def _attend(self, layer: int, q: Tensor) -> State:
        k, v = self._pool.layer(layer)
        return paged_attention(
            q,
            k,
            v,
            self._rows,
            scale=self._config.scale,
            window=self._config.window(layer),
            scales=self._pool.scales(layer),
        )
