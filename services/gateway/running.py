"""Runs the choices of one answer concurrently; answers can be cancelled by their id."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing

from msgspec.structs import replace

from sps2.common.api.answer_ids import name_in
from sps2.common.bus.peer import Peer
from sps2.common.errors import Cancelled, Invalid, ServiceError
from sps2.common.messages import Pin, Pinned, Predict, Predicted, Progress
from sps2.common.text.tokens import Detokenizer, Tokenizer
from sps2.common.tracing import Trail
from sps2.services.gateway.generate import Generation, Job, Record
from sps2.services.gateway.latency import TokenPace
from sps2.services.gateway.monitoring.request_metrics import Metrics
from sps2.services.gateway.shards import Shards
from sps2.services.gateway.text import Piece, Writer
from sps2.services.gateway.validate import Order
from sps2.services.tasks import emitted_by, root_cause

PREDICT_S = 10.0
"""How long the scheduler may take to predict."""

Said = tuple[int, Piece | Progress]
Emit = Callable[[Said], None]


class Running:
    """The answers in work, by name (the hexadecimal part of their id).

    Args:
        max_waiting: how many choices of one answer may wait in the scheduler's queue; the others
            are submitted when these have left it.
    """

    def __init__(
        self,
        scheduler: Peer,
        shards: Shards,
        tokenizer: Tokenizer,
        metrics: Metrics,
        max_waiting: int,
    ) -> None:
        self._max_waiting = max_waiting
        self._scheduler = scheduler
        self._shards = shards
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._aborts: dict[str, asyncio.Future[None]] = {}

    async def pieces(
        self, name: str, order: Order, records: list[Record], trail: Trail
    ) -> AsyncGenerator[Said, None]:
        """Yield (choice, piece), and (choice, progress) if requested, as they come.

        Ending the iteration early cancels all choices.

        Raises:
            ServiceError: the first failure of a choice; the others are then cancelled.
        """
        abort = asyncio.get_running_loop().create_future()
        self._metrics.choices.observe(len(order.jobs))
        waiting = asyncio.Semaphore(self._max_waiting)

        async def run(emit: Emit) -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    watch = group.create_task(_fail_with(abort))
                    choices = [
                        group.create_task(
                            self._choice(index, job, records[index], trail, waiting, emit)
                        )
                        for index, job in enumerate(order.jobs)
                    ]
                    await asyncio.wait(choices)
                    watch.cancel()
            except BaseExceptionGroup as failures:
                raise root_cause(failures) from failures

        self._aborts[name] = abort
        try:
            async with aclosing(emitted_by(run)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    yield piece
        finally:
            del self._aborts[name]

    async def predict(self, job: Job) -> Predicted:
        """What the scheduler predicts of a job, which is not run."""
        return await self._scheduler.call(Predict(job.submit()), PREDICT_S)

    async def pin(self, job: Job, keep: bool) -> Pinned:
        """Keep the cached pages of a job's prompt on disk, or do so no longer."""
        return await self._scheduler.call(Pin(job.submit(), keep), PREDICT_S)

    def cancel(self, request: str) -> None:
        """End an answer by its id (`cmpl-..`, `chatcmpl-..`), or one of its scheduler requests.

        Raises:
            Invalid: no running answer has this id.
        """
        name = name_in(request)
        if name not in self._aborts:
            raise Invalid(
                f"no running request has id {request[:80]!r}", "request", "request_not_found"
            )
        self._abort(name, Cancelled(f"request {request} was cancelled"))

    def abort_all(self, error: ServiceError) -> None:
        """End every answer in work with `error`."""
        for name in self._aborts:
            self._abort(name, error)

    def _abort(self, name: str, error: ServiceError) -> None:
        if not self._aborts[name].done():
            self._aborts[name].set_exception(error)

    async def _choice(
        self,
        index: int,
        job: Job,
        record: Record,
        trail: Trail,
        waiting: asyncio.Semaphore,
        emit: Emit,
    ) -> None:
        writer = Writer(
            Detokenizer(self._tokenizer, job.prompt, not job.shows_special, job.shown),
            job.sampling.stop_token_ids,
            job.stops,
            job.sampling.min_tokens,
            job.shows_stop,
        )
        special = self._tokenizer.special
        stops = {special[stop]: stop for stop in job.stops if stop in special}
        with ExitStack() as turn:
            await waiting.acquire()
            turn.callback(waiting.release)
            generation = Generation(
                job,
                record,
                self._scheduler,
                self._shards,
                advanced=lambda progress: emit((index, progress)),
                traceparent=trail.traceparent,
                placed=turn.close,
            )
            pace = TokenPace(self._metrics, job, record, trail)
            async with aclosing(generation.tokens()) as tokens:
                async for token in tokens:
                    with pace.token():
                        piece = Piece(finish=token.finish) if job.silent else writer.add(token)
                    if piece.finish == "stop" and not piece.stop:
                        piece = replace(piece, stop=stops.get(token.id, ""))
                    emit((index, piece))
                    if piece.finish is not None:
                        pace.ended(piece.finish)
                        if token.finish is None:
                            break  # a stop string: leaving cancels the rest
            pace.closed()


async def _fail_with(abort: asyncio.Future[None]) -> None:
    await abort
