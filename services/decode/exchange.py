"""q goes to where keys and values are, attention states come back: both sides of it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.common.device import Device
from sps2.common.errors import PeerLost, ServiceError
from sps2.common.model.config import ModelConfig
from sps2.common.model.pages import PagePool
from sps2.common.transport.frame import Frame, frame_for
from sps2.common.transport.plane import Plane
from sps2.kernels import PagedRows, State, paged_attention
from sps2.services.decode.holding import Holding, Holdings, Key
from sps2.services.decode.linger import Linger

log = logging.getLogger(__name__)

ANSWER_S = 10.0
"""A holder that is silent for longer counts as lost."""


class NotHeld(PeerLost):
    """A holder let go of some requests, most likely because they were ended."""

    def __init__(self, holder: str, keys: Sequence[Key]) -> None:
        gone = ", ".join(request for request, _ in keys)
        super().__init__(holder, f"{holder} no longer holds {gone}")
        self.keys = list(keys)


Answers = Callable[[], Awaitable[list[State]]]


class Question(NamedTuple):
    """What an owner asks of a holder in every layer of a step, about some of its batch."""

    holder: str
    requests: tuple[str, ...]
    epochs: tuple[int, ...]
    positions: Tensor
    """Of the queries: [rows] int32."""
    step: int

    @classmethod
    def about(
        cls, holder: str, keys: Sequence[Key], positions: Sequence[int], step: int
    ) -> "Question":
        requests, epochs = zip(*keys, strict=True)
        at = torch.tensor(positions, dtype=torch.int32)
        return cls(holder, requests, epochs, at, step)


class _Asked(NamedTuple):
    answer: asyncio.Future[State]
    keys: frozenset[Key]
    """Of the requests that it is for."""


class Exchange:
    """Remote attention as a stateless operation on pages.

    One frame of q carries all rows that an owner has for a holder, [rows, heads, head_dim], with
    the positions of the queries; the answer is their state over the holder's keys: the output in
    the model's dtype and the log-sum-exp in float32. Bytes per row and layer:
    heads * (2 * head_dim * itemsize + 4), whatever the context.
    """

    def __init__(
        self, config: ModelConfig, plane: Plane, pool: PagePool, holdings: Holdings
    ) -> None:
        self._config = config
        self._plane = plane
        self._pool = pool
        self._holdings = holdings
        self._asked: dict[tuple[str, int, int], _Asked] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._lately: dict[str, tuple[tuple[object, ...], PagedRows]] = {}
        """What each owner asked about last."""
        self._linger = Linger()
        plane.serve("question", self._on_question)
        plane.serve("answer", self._on_answer)
        plane.on_gone(self._on_gone)

    @property
    def device(self) -> Device:
        """Where this process computes."""
        return self._plane.device

    @contextmanager
    def asking(self, layer: int, questions: Sequence[Question]) -> Iterator[Answers]:
        """Expect the states of all `questions` in a layer, in their order; see `ask`.

        Calling what the block is given awaits them; it raises PeerLost if a holder is gone or
        silent, NotHeld if it no longer holds one of the requests.
        """
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[State]] = []
        for question in questions:
            answers.append(loop.create_future())
            keys = frozenset(zip(question.requests, question.epochs, strict=True))
            self._asked[question.holder, layer, question.step] = _Asked(answers[-1], keys)
        clock = loop.call_later(ANSWER_S, self._overdue, questions, layer)
        try:
            yield partial(_all, answers)
        finally:
            clock.cancel()
            for question, answer in zip(questions, answers, strict=True):
                del self._asked[question.holder, layer, question.step]
                if not answer.cancel() and not answer.cancelled():
                    answer.exception()  # seen, if the block ended for another reason

    def give_up(self, running: Collection[Key]) -> None:
        """Await no answer that is only for requests that have ended; it counts as a loss.

        Others are not slowed down by a holder that their requests have nothing to do with.
        """
        for (holder, _, _), asked in self._asked.items():
            if asked.keys.isdisjoint(running) and not asked.answer.done():
                why = f"the requests that {holder} was asked about have ended"
                asked.answer.set_exception(PeerLost(holder, why))

    async def ask(self, question: Question, layer: int, q: Tensor) -> None:
        """Send a holder the queries of a layer, [rows, heads, head_dim].

        Raises:
            PeerLost: the holder is gone.
        """
        tensors = (q, question.positions)
        keys = question.requests, question.epochs
        frame = frame_for("question", *keys, layer, question.step, tensors)
        await self._plane.send(question.holder, frame, tensors)

    def _on_question(self, source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        self._linger.more()
        (q,), positions = self.device.up(tensors[:1]), tensors[1]
        keys = list(zip(frame.requests, frame.epochs, strict=True))
        held = [self._holdings.get(key) for key in keys]
        gone = [key for key, holding in zip(keys, held, strict=True) if holding is None]
        answer: tuple[Tensor, ...] = ()
        if not gone:
            rows = self._rows_of(source, frame, held, positions)
            window = self._config.window(frame.layer)
            k, v = self._pool.layer(frame.layer)
            scale = self._config.scale
            scales = self._pool.scales(frame.layer)
            out, lse = paged_attention(q, k, v, rows, scale=scale, window=window, scales=scales)
            answer = (out.to(q.dtype), lse)
        reply = frame_for(
            "answer",
            tuple(request for request, _ in gone),
            tuple(epoch for _, epoch in gone),
            frame.layer,
            frame.at,
            answer,
        )
        task = asyncio.get_running_loop().create_task(self._answer(source, reply, answer))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def _rows_of(
        self, source: str, frame: Frame, held: Sequence[Holding | None], positions: Tensor
    ) -> PagedRows:
        """Where the keys of a question lie; all layers of a step ask about the same."""
        about = frame.at, frame.requests, frame.epochs
        known = self._lately.get(source)
        if known is not None and known[0] == about and frame.layer:
            return known[1]
        runs = [holding.pages.runs(holding.span.stop) for holding in held if holding]
        rows = PagedRows(runs, positions.tolist())
        self._pool.counters.update(decode_keys=rows.keys, decode_keys_read=rows.keys_read)
        self._lately[source] = about, rows
        return rows

    async def _answer(self, source: str, frame: Frame, state: tuple[Tensor, ...]) -> None:
        try:
            await self._plane.send(source, frame, state)
        except ServiceError as error:
            log.warning("an answer to %s was not sent: %s", source, error)

    def _on_answer(self, source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        asked = self._asked.get((source, frame.layer, frame.at))
        if asked is None or asked.answer.done():
            return
        answer = asked.answer
        if frame.requests:
            gone = list(zip(frame.requests, frame.epochs, strict=True))
            answer.set_exception(NotHeld(source, gone))
        else:
            answer.set_result(State(*self.device.up(tensors)))

    def _overdue(self, questions: Sequence[Question], layer: int) -> None:
        for question in questions:
            asked = self._asked.get((question.holder, layer, question.step))
            if asked is not None and not asked.answer.done():
                why = f"{question.holder} did not answer in {ANSWER_S:.0f} s"
                asked.answer.set_exception(PeerLost(question.holder, why))

    def _on_gone(self, peer: str) -> None:
        self._lately.pop(peer, None)
        for (holder, _, _), asked in self._asked.items():
            if holder == peer and not asked.answer.done():
                asked.answer.set_exception(PeerLost(holder))


async def _all(answers: Sequence[asyncio.Future[State]]) -> list[State]:
    return [await answer for answer in answers]
