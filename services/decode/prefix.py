"""Answers prefill ranks whose prompts begin with tokens whose KV lies here."""

import asyncio
import logging

from torch import Tensor

from sps2.common.errors import ServiceError
from sps2.common.model.config import ModelConfig
from sps2.common.model.pages import PagePool
from sps2.common.transport.frame import Frame, frame_for
from sps2.common.transport.plane import Plane
from sps2.kernels import State, attention, empty_state, merge_many
from sps2.services.decode.holding import Holding, Holdings

log = logging.getLogger(__name__)

KEYS = 4096
"""Attended to at once; between two such pieces this shard's own steps go on."""


class Prefixes:
    """Attention of many queries of one request to the cached pages that it shares here.

    A frame of q, [rows, heads, head_dim], has consecutive positions from its `at` on, and the heads
    of some KV heads from its `head` on. The answer is their state over the shared pages, or nothing
    where it cannot be had: if the request is not held here.
    """

    def __init__(
        self, config: ModelConfig, plane: Plane, pool: PagePool, holdings: Holdings
    ) -> None:
        self._config = config
        self._plane = plane
        self._pool = pool
        self._holdings = holdings
        self._answering: set[asyncio.Task[None]] = set()
        plane.serve("prefix_q", self._on_q)

    def _on_q(self, source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(source, frame, *tensors))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, source: str, frame: Frame, q: Tensor) -> None:
        state: tuple[Tensor, ...] = ()
        try:
            if holding := self._holdings.get((frame.requests[0], frame.epochs[0])):
                state = await self._attend(holding, frame, q)
        except Exception:  # whoever asked must not wait for ever
            log.exception("a question of %s could not be answered", source)
        tensors = tuple(tensor.contiguous() for tensor in state)
        reply = frame_for(
            "prefix_state", frame.requests, frame.epochs, frame.layer, frame.at, tensors
        )
        try:
            await self._plane.send(source, reply, tensors)
        except ServiceError as error:
            log.warning("an answer to %s was not sent: %s", source, error)

    async def _attend(self, holding: Holding, frame: Frame, q: Tensor) -> State:
        keys, values = self._pool.layer(frame.layer)
        rows, count, dim = q.shape
        size = self._config.heads // self._config.kv_heads
        first = frame.head - self._holdings.heads.start
        heads = slice(first, first + count // size)
        states = [empty_state(rows, count, dim, q.dtype)]
        for run in holding.pages.runs(holding.span.start):
            for start in range(0, run.tokens, KEYS):
                slots = slice(run.slot + start, run.slot + min(start + KEYS, run.tokens))
                state = attention(
                    q,
                    keys[slots, heads],
                    values[slots, heads],
                    q_start=frame.at,
                    k_start=run.start + start,
                    scale=self._config.scale,
                    window=self._config.window(frame.layer),
                )
                states.append(state)
                await asyncio.sleep(0)
        return merge_many(states)
