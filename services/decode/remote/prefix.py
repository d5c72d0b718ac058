"""Answers prefill ranks whose prompts begin with tokens that are cached here."""

import asyncio
import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from sps2.common.errors import Cancelled, Invalid, ServiceError
from sps2.common.model.config import ModelConfig
from sps2.common.model.pages import PagePool
from sps2.common.spans import Span
from sps2.common.transport.expected import Like, check, check_layer
from sps2.common.transport.frame import Frame, frame_for
from sps2.common.transport.plane import Plane
from sps2.kernels import Run, State, attention, empty_state
from sps2.services.decode.kv.holding import Holding, Holdings, Key
from sps2.services.gpu_faults import end_if_poisoned

log = logging.getLogger(__name__)

KEYS = 4096
"""Keys attended to at once; this shard's own decode steps run between two of these pieces."""


class Prefixes:
    """Attention of many queries of one request to its keys here that precede all of them.

    A frame has q, [rows, heads, head_dim], with consecutive positions from its `at` on, and the
    query heads of some KV heads from its `head` on; and the position before which keys count, [1]
    int64. The answer is their state over those keys. It has no tensors if the request is not held
    here, or if attention failed.
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
        task = asyncio.get_running_loop().create_task(self._answer(source, frame, tensors))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def attend(self, key: Key, layer: int, at: int, head: int, q: Tensor, stop: int) -> State:
        """Attend for a rank that computes in this process; may be called on any thread.

        Raises:
            Cancelled: the request is not held here any more.
        """
        holding = self._holdings.get(key)
        if holding is None:
            raise Cancelled(f"request {key[0]} is not held in epoch {key[1]} any more")
        state = _nothing(q)
        for _ in self._attending(holding, layer, at, head, q, stop, state):
            pass
        return state

    async def _answer(self, source: str, frame: Frame, question: tuple[Tensor, ...]) -> None:
        tensors: tuple[Tensor, ...] = ()
        try:
            q, stop = self._checked(frame, question)
            if holding := self._holdings.get((frame.requests[0], frame.epochs[0])):
                (q,) = self._plane.device.up((q,))
                state = _nothing(q)
                about = frame.layer, frame.at, frame.head
                for _ in self._attending(holding, *about, q, stop, state):
                    await asyncio.sleep(0)
                tensors = (state.out.to(q.dtype), state.lse)
        except Invalid as error:
            log.error("a question of %s could not be answered: %s", source, error)
        except Exception as error:  # the rank must not wait for ever
            end_if_poisoned(error)
            log.exception("a question of %s could not be answered", source)
        reply = frame_for(
            "prefix_state", frame.requests, frame.epochs, frame.layer, frame.at, tensors
        )
        try:
            await self._plane.send(source, reply, tensors)
        except ServiceError as error:
            log.warning("an answer to %s was not sent: %s", source, error)
        except Exception as error:
            end_if_poisoned(error)
            log.exception("an answer to %s was not sent", source)

    def _checked(self, frame: Frame, tensors: tuple[Tensor, ...]) -> tuple[Tensor, int]:
        """The queries, and the position before which keys count.

        Raises:
            Invalid: they are not for heads of this model that are here.
        """
        check_layer(frame.layer, self._config.layers)
        queries = Like(self._holdings.dtype, (None, None, self._config.head_dim))
        check("a question", tensors, (queries, Like(torch.int64, (1,))))
        q, stop = tensors
        here, group = self._holdings.heads, self._config.heads // self._config.kv_heads
        heads = Span(frame.head, frame.head + q.shape[1] // group)
        if q.shape[1] % group or not here.start <= heads.start <= heads.stop <= here.stop:
            raise Invalid(f"{q.shape[1]} heads of q from KV head {frame.head} on; here are {here}")
        if len(frame.requests) != 1 or frame.at < 0:
            raise Invalid(f"{len(frame.requests)} requests, at {frame.at}; it is about one")
        if not 0 <= int(stop) <= frame.at:
            raise Invalid(f"keys before {int(stop)} do not precede the queries from {frame.at} on")
        return q, int(stop)

    def _attending(
        self, holding: Holding, layer: int, at: int, head: int, q: Tensor, stop: int, state: State
    ) -> Iterator[None]:
        """Merge attention to the keys before `stop` into `state`, at most `KEYS` for each item."""
        keys, values = self._pool.layer(layer)
        scales = self._pool.scales(layer)
        rows, count, _ = q.shape
        first = head - self._holdings.heads.start
        heads = slice(first, first + count * self._config.kv_heads // self._config.heads)
        if scales is not None:
            scales = scales[0][:, heads], scales[1][:, heads]
        window = self._config.window(layer)
        start = 0 if window is None else max(0, at - window + 1)
        for begin in range(start, stop, KEYS):
            if runs := holding.pages.runs(min(begin + KEYS, stop), begin):
                attention(
                    q,
                    keys[:, heads],
                    values[:, heads],
                    queries=[Run(0, at, rows)],
                    keys=runs,
                    scale=self._config.scale,
                    window=window,
                    state=state,
                    scales=scales,
                )
                yield


def _nothing(q: Tensor) -> State:
    rows, heads, dim = q.shape
    return empty_state(rows, heads, dim, q.device)
