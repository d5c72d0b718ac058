"""Exact attention over a prefill group: keys and values travel round a ring, states are merged."""

import asyncio
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from sps2.common.model.attend import Run
from sps2.common.model.config import ModelConfig
from sps2.common.spans import Span
from sps2.common.transport.frame import frame_for
from sps2.common.transport.inbox import Inbox
from sps2.common.transport.plane import Plane
from sps2.kernels import State, attention, merge_many
from sps2.services.prefill.deposit import Deposit


class RingAttention:
    """The `Attend` of one rank of a prefill group.

    In every step a rank sends the keys and values in its hands to the next rank, attends to them
    while they travel, and takes over those of the rank before it: N steps show it everything.
    Source: Ring Attention (arXiv 2310.01889); spans are dealt by `zigzag`, so that causal work is
    even. Communication: (N-1)/N * S * 2 * kv_heads * head_dim elements per rank and layer.

    Args:
        key: (request, epoch) that the inbox was opened for.
        names: data-plane names of the group, in ring order.
        spans: token spans of each rank, in the same order.
        deposit: told of this rank's keys and values of every layer.
        run: where attention is computed while the loop moves tensors.
    """

    def __init__(
        self,
        config: ModelConfig,
        plane: Plane,
        inbox: Inbox,
        key: tuple[str, int],
        names: Sequence[str],
        spans: Sequence[tuple[Span, ...]],
        rank: int,
        deposit: Deposit,
        run: Run,
    ) -> None:
        self._config = config
        self._plane = plane
        self._inbox = inbox
        self._key = key
        self._following = names[(rank + 1) % len(names)]
        self._preceding = names[(rank - 1) % len(names)]
        self._spans = spans
        self._rank = rank
        self._deposit = deposit
        self._run = run
        self.sent_bytes = 0

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._deposit.put(layer, k, v)

        ranks = len(self._spans)
        seen: list[list[State]] = [[] for _ in self._spans[self._rank]]
        for step in range(ranks):
            source = (self._rank - step) % ranks
            work = partial(self._attend, layer, q, k, v, source, seen)
            if step == ranks - 1:
                await self._run(work)
                break
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send(layer, step, k, v))
                arriving = group.create_task(self._inbox.recv("kv", layer, step, self._preceding))
                await self._run(work)
            k, v = arriving.result()
        return await self._run(lambda: torch.cat([merge_many(own).out for own in seen if own]))

    async def _send(self, layer: int, step: int, k: Tensor, v: Tensor) -> None:
        request, epoch = self._key
        frame = frame_for("kv", (request,), (epoch,), layer, step, (k, v))
        self.sent_bytes += frame.nbytes
        await self._plane.send(self._following, frame, (k, v))

    def _attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, source: int, seen: list[list[State]]
    ) -> None:
        """Add to `seen`, by this rank's spans, the states over rank `source`'s keys."""
        window = self._config.window(layer)
        for index, (q_span, rows) in enumerate(_rows(self._spans[self._rank])):
            for k_span, keys in _rows(self._spans[source]):
                if not q_span.tokens or not k_span.tokens or k_span.start >= q_span.stop:
                    continue
                state = attention(
                    q[rows],
                    k[keys],
                    v[keys],
                    q_start=q_span.start,
                    k_start=k_span.start,
                    scale=self._config.scale,
                    window=window,
                )
                seen[index].append(state)


def _rows(spans: tuple[Span, ...]) -> list[tuple[Span, slice]]:
    """Each span with its rows in a tensor that holds the spans one after the other."""
    rows = []
    first = 0
    for span in spans:
        rows.append((span, slice(first, first + span.tokens)))
        first += span.tokens
    return rows
