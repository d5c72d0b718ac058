"""Remote attention: q goes to the KV, attention states come back; both sides of the exchange."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.common.device import Device
from sps2.common.errors import Internal, Invalid, PeerLost, ServiceError
from sps2.common.model.config import ModelConfig
from sps2.common.model.pages import PagePool
from sps2.common.transport.expected import Like, check, check_layer, state_like
from sps2.common.transport.frame import Frame, frame_for
from sps2.common.transport.plane import Plane
from sps2.kernels import PagedRows, State, paged_attention
from sps2.services.decode.frame_rows import Unanswered, pack, unpack_keys, unpack_unanswered
from sps2.services.decode.holder_spin import HolderSpin
from sps2.services.decode.kv.holding import Holding, Holdings, Key
from sps2.services.gpu_faults import end_if_poisoned

log = logging.getLogger(__name__)

ANSWER_S = 10.0
"""A holder that does not answer within this time counts as lost."""


class NotHeld(PeerLost):
    """A holder has released some requests, most likely because they were ended."""

    def __init__(self, holder: str, keys: Sequence[Key]) -> None:
        gone = ", ".join(request for request, _ in keys)
        super().__init__(holder, f"{holder} no longer holds {gone}")
        self.keys = list(keys)


class Failed(Internal):
    """A holder answered a question about `keys` with a fault, or with an invalid answer."""

    def __init__(self, message: str, keys: Collection[Key]) -> None:
        super().__init__(message)
        self.keys = list(keys)


Answers = Callable[[], Awaitable[list[State]]]


class Question(NamedTuple):
    """What an owner asks a holder in every layer of a step, about some rows of its batch."""

    holder: str
    keys: tuple[Key, ...]
    """The request of each row."""
    about_rows: tuple[Tensor, Tensor]
    """Positions of the queries, [rows] int32, and the packed keys."""
    step: int

    @classmethod
    def about(
        cls, holder: str, keys: Sequence[Key], positions: Sequence[int], step: int
    ) -> "Question":
        at = torch.tensor(positions, dtype=torch.int32)
        return cls(holder, tuple(keys), (at, pack(keys)), step)


class _Pending(NamedTuple):
    answer: asyncio.Future[State]
    keys: tuple[Key, ...]
    """The request of each row in the answer."""


class Exchange:
    """Remote attention as a stateless operation on pages.

    One frame of q carries all rows that an owner has for a holder, [rows, heads, head_dim], with
    the positions of the queries. The answer is their state over the holder's keys: the output in
    the model's dtype and the log-sum-exp in float32. A row and layer costs
    heads * (2 * head_dim * itemsize + 4) bytes, whatever the context.
    """

    def __init__(
        self, config: ModelConfig, plane: Plane, pool: PagePool, holdings: Holdings
    ) -> None:
        self._config = config
        self._plane = plane
        self._pool = pool
        self._holdings = holdings
        self._pending: dict[tuple[str, int, int], _Pending] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._lately: dict[str, tuple[tuple[object, ...], PagedRows]] = {}
        """The last question of each owner, and where its keys lie."""
        self._spin = HolderSpin()
        plane.serve("question", self._on_question)
        plane.serve("answer", self._on_answer)
        plane.on_gone(self._on_gone)

    @property
    def device(self) -> Device:
        """The device that this process computes on."""
        return self._plane.device

    @contextmanager
    def asking(self, layer: int, questions: Sequence[Question]) -> Iterator[Answers]:
        """Expect the states of all `questions` in a layer, in their order; see `ask`.

        The block gets a function that awaits them. It raises PeerLost if a holder is gone or
        silent, NotHeld if it no longer holds one of the requests, Failed if it cannot answer.
        """
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[State]] = []
        for question in questions:
            answers.append(loop.create_future())
            pending = _Pending(answers[-1], question.keys)
            self._pending[question.holder, layer, question.step] = pending
        clock = loop.call_later(ANSWER_S, self._overdue, questions, layer)
        try:
            yield partial(_all, answers)
        finally:
            clock.cancel()
            for question, answer in zip(questions, answers, strict=True):
                del self._pending[question.holder, layer, question.step]
                if not answer.cancel() and not answer.cancelled():
                    answer.exception()  # retrieved, if the block ended for another reason

    def give_up(self, running: Collection[Key]) -> None:
        """Stop waiting for answers that are only for ended requests; their holders count as lost.

        All requests of a batch share its step. If a holder is silent, they wait until the requests
        that need it have ended, or until it counts as lost.
        """
        for (holder, _, _), pending in self._pending.items():
            if not any(key in running for key in pending.keys) and not pending.answer.done():
                why = f"the requests that need an answer of {holder} have ended"
                pending.answer.set_exception(PeerLost(holder, why))

    async def ask(self, question: Question, layer: int, q: Tensor) -> None:
        """Send a holder the queries of a layer, [rows, heads, head_dim].

        Raises:
            PeerLost: the holder is gone.
        """
        tensors = (q, *question.about_rows)
        frame = frame_for("question", (), (), layer, question.step, tensors)
        await self._plane.send(question.holder, frame, tensors)

    def _on_question(self, source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        self._spin.more()
        try:
            answer = self._answer(source, frame, tensors)
        except Exception as error:  # the owner must not wait in vain
            answer = (self._refusal(source, error),)
        task = asyncio.get_running_loop().create_task(self._send(source, frame, answer))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def _answer(self, source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The requested state, or which requests are no longer held.

        Raises:
            Invalid: the question does not fit this model.
        """
        config = self._config
        check_layer(frame.layer, config.layers)
        keys = unpack_keys(tensors[-1]) if tensors else []
        queries = Like(self._holdings.dtype, (len(keys), config.heads, config.head_dim))
        at, packed = Like(torch.int32, (len(keys),)), Like(torch.uint8, (None,))
        check("a question", tensors, (queries, at, packed))
        q, positions, _ = tensors
        held = [self._holdings.get(key) for key in keys]
        if gone := [key for key, holding in zip(keys, held, strict=True) if holding is None]:
            return (pack(Unanswered(gone)),)
        (q,) = self.device.up((q,))
        rows = self._rows_of(source, (frame.at, *keys), frame.layer, held, positions)
        k, v = self._pool.layer(frame.layer)
        window, scales = config.window(frame.layer), self._pool.scales(frame.layer)
        out, lse = paged_attention(q, k, v, rows, scale=config.scale, window=window, scales=scales)
        return out.to(q.dtype), lse

    def _rows_of(
        self,
        source: str,
        about: tuple[object, ...],
        layer: int,
        held: Sequence[Holding | None],
        positions: Tensor,
    ) -> PagedRows:
        """Where the keys of a question lie: the same for all layers of a step."""
        known = self._lately.get(source)
        if known is not None and known[0] == about and layer:
            return known[1]
        runs = [holding.pages.runs(holding.span.stop) for holding in held if holding]
        rows = PagedRows(runs, positions.tolist())
        self._pool.counters.update(decode_keys=rows.keys, decode_keys_read=rows.keys_read)
        self._lately[source] = about, rows
        return rows

    def _refusal(self, source: str, error: Exception) -> Tensor:
        end_if_poisoned(error)
        known = isinstance(error, ServiceError)
        why = str(error) if known else type(error).__name__
        trace = None if known else error
        log.error("a question of %s could not be answered: %s", source, why, exc_info=trace)
        return pack(Unanswered(why=why))

    async def _send(self, source: str, question: Frame, answer: tuple[Tensor, ...]) -> None:
        try:
            frame = frame_for("answer", (), (), question.layer, question.at, answer)
            await self._plane.send(source, frame, answer)
        except ServiceError as error:
            log.warning("an answer to %s was not sent: %s", source, error)
        except Exception as error:  # a GPU's error appears where its result is awaited
            end_if_poisoned(error)
            log.exception("an answer to %s was not sent", source)

    def _on_answer(self, source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        pending = self._pending.get((source, frame.layer, frame.at))
        if pending is None or pending.answer.done():
            return
        try:
            pending.answer.set_result(self._state(source, pending.keys, tensors))
        except Exception as error:
            end_if_poisoned(error)
            if isinstance(error, Invalid):
                error = Failed(f"{source} sent an invalid answer: {error}", pending.keys)
            pending.answer.set_exception(error)

    def _state(self, source: str, keys: tuple[Key, ...], tensors: tuple[Tensor, ...]) -> State:
        """The state in an answer. Raises NotHeld, Failed, or Invalid if it is malformed."""
        if len(tensors) == 1:
            refusal = unpack_unanswered(tensors[0])
            if refusal.gone:
                raise NotHeld(source, refusal.gone)
            raise Failed(f"{source} could not answer: {refusal.why}", keys)
        config, dtype = self._config, self._holdings.dtype
        check("a state", tensors, state_like(len(keys), config.heads, config.head_dim, dtype))
        return State(*self.device.up(tensors))

    def _overdue(self, questions: Sequence[Question], layer: int) -> None:
        for question in questions:
            pending = self._pending.get((question.holder, layer, question.step))
            if pending is not None and not pending.answer.done():
                why = f"{question.holder} did not answer in {ANSWER_S:.0f} s"
                pending.answer.set_exception(PeerLost(question.holder, why))

    def _on_gone(self, peer: str) -> None:
        self._lately.pop(peer, None)
        for (holder, _, _), pending in self._pending.items():
            if holder == peer and not pending.answer.done():
                pending.answer.set_exception(PeerLost(holder))


async def _all(answers: Sequence[asyncio.Future[State]]) -> list[State]:
    return [await answer for answer in answers]
