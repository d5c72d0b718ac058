"""Runs batches: their requests go last, and few at once."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import BinaryIO, TypeVar

import msgspec
from msgspec.structs import replace

from sps2.common.api import (
    ChatRequest,
    CompletionRequest,
    EmbeddingExtension,
    EmbeddingRequest,
    Extension,
    parse,
)
from sps2.common.api.collect import collect_chat, collect_completion
from sps2.common.api.parsing import UNSUPPORTED
from sps2.common.errors import Invalid, PeerLost, Refused, ServiceError
from sps2.common.words import listed
from sps2.services.gateway.correlation_ids import NOBODY
from sps2.services.gateway.gateway import Gateway
from sps2.services.gateway.http.body import SMALL
from sps2.services.gateway.http.door import Batched
from sps2.services.gateway.http.problems import ErrorReport, TooLarge
from sps2.services.gateway.keys.quota import Account
from sps2.services.gateway.protocols.batches.batch import (
    BAD,
    Job,
    failed_with,
    next_line,
    problems_of,
)
from sps2.services.gateway.protocols.batches.shapes import (
    Batch,
    BatchRequest,
    Line,
    Problem,
    Reason,
    Status,
)
from sps2.services.gateway.protocols.batches.store import Store, Stored
from sps2.services.tasks import end as ended
from sps2.services.tasks import root_cause

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R", ChatRequest, CompletionRequest)
E = TypeVar("E", bound=Extension)

PRIORITY = -8
"""`sps2.priority` of a request that has none of its own; the lowest."""
MOST_PRIORITY = -1
"""A request of a batch has at most this."""
Endpoint = Callable[[msgspec.Raw, str, Account | None], Awaitable[object]]

LOST_S = 1.0
"""Pause before a request is tried again that was lost with a service."""
TRIES = 3
"""How often a request is tried that is lost with a service."""
WAIT_S = 30.0
"""Longest pause before a refused request is tried again."""
MOST_BATCHES = 1000
REASONS = {
    "cancelled": Reason("batch_cancelled", "the batch was cancelled before this request was done"),
    "expired": Reason("batch_expired", "the batch expired before this request was done"),
}


class Batches:
    """The batches of all clients.

    Args:
        store: the files that they read and write.
        obstacle: why no requests are accepted, in words; empty when they are.
        concurrency: requests of batches in work at once.
        most_bytes: of one request.
    """

    def __init__(
        self,
        gateway: Gateway,
        store: Store,
        obstacle: Callable[[], Awaitable[str]],
        concurrency: int,
        most_bytes: int,
    ) -> None:
        self.store = store
        self._gateway = gateway
        self._obstacle = obstacle
        self._concurrency = concurrency
        self._turns = asyncio.Semaphore(concurrency)
        self._most_bytes = most_bytes
        self._jobs: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._endpoints: dict[str, Endpoint] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completion,
            "/v1/embeddings": self._embedding,
        }

    def add(self, path: str, answer: Batched) -> None:
        """Accept batches for another endpoint."""

        async def parsed(body: msgspec.Raw, name: str, account: Account | None) -> object:
            return await answer(bytes(body), name, account, _lowered)

        self._endpoints[path] = parsed

    def create(
        self, request: BatchRequest, stored: Stored, owner: str, account: Account | None
    ) -> Batch:
        """Begin a batch.

        Args:
            stored: the file of its requests.

        Raises:
            Invalid: it is not such a file, or is no more, or there is no such endpoint.
            Refused: too many batches are in work.
        """
        if request.endpoint not in self._endpoints:
            known = listed([f"`{each}`" for each in self._endpoints], "or")
            raise Invalid(f"`endpoint` must be {known}", "endpoint", UNSUPPORTED)
        if stored.file.purpose != "batch":
            raise Invalid(
                "`input_file_id` is an answer: upload a file of requests",
                "input_file_id",
                BAD,
            )
        self._forget()
        job = Job(request, owner, account, self.store)
        # opened at once: the file may be deleted before its turn comes
        try:
            file = stored.path.open("rb")
        except FileNotFoundError:  # of another gateway, which may have ended
            name = stored.file.id
            raise Invalid(f"there is no file {name!r} any more", "input_file_id", BAD) from None
        self._jobs[job.shown.id] = job
        task = asyncio.create_task(self._run(job, file))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: file.close())  # also if it is cancelled before it runs
        return job.shown

    def job(self, name: str, owner: str) -> Job:
        """A batch by its id. Raises Invalid if this client has none of that name."""
        job = self._jobs.get(name)
        if job is None or job.owner != owner:
            raise Invalid(f"there is no batch {name[:80]!r}", "batch_id", "batch_not_found")
        return job

    def batches(self, owner: str) -> list[Batch]:
        """The batches of a client, the newest first."""
        return [job.shown for job in reversed(self._jobs.values()) if job.owner == owner]

    def cancel(self, name: str, owner: str) -> Batch:
        """End a batch early; what is answered already is kept.

        Raises:
            Invalid: there is no such batch, or it has ended.
        """
        job = self.job(name, owner)
        if job.shown.status not in ("validating", "in_progress", "cancelling"):
            raise Invalid(f"batch {name} is {job.shown.status}: it has ended", "batch_id", BAD)
        if not job.stop.done():
            job.stop.set_result(None)
            job.becomes("cancelling")
        return job.shown

    def counters(self) -> dict[str, float]:
        """For heartbeats: what is here, and is lost with this process."""
        running = sum(not job.ended.is_set() for job in self._jobs.values())
        return {"batches_running": float(running), "files_kept": float(self.store.count())}

    async def close(self) -> None:
        """End all batches, and remove all files."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.store.close()

    def _forget(self) -> None:
        """Forget the oldest batch that ended, if there are as many as may be."""
        if len(self._jobs) < MOST_BATCHES:
            return
        ended = next((name for name, job in self._jobs.items() if job.ended.is_set()), None)
        if ended is None:
            raise Refused(f"{MOST_BATCHES} batches are in work, which is the most; try again later")
        del self._jobs[ended]

    async def _run(self, job: Job, file: BinaryIO) -> None:
        try:
            await self._process(job, file)
        except Exception as error:
            if not isinstance(error, (ServiceError, TooLarge)):
                log.error("batch %s failed", job.shown.id, exc_info=error)
            report = ErrorReport(error)
            with suppress(ServiceError, OSError):
                job.close()
            problem = Problem(code=report.code or "internal_error", message=report.message)
            job.becomes("failed", **failed_with([problem]))
        finally:
            with suppress(OSError):
                job.drop()
            job.ended.set()

    async def _process(self, job: Job, file: BinaryIO) -> None:
        endpoint = job.request.endpoint
        job.total, problems = await asyncio.to_thread(
            problems_of, file, endpoint, self._most_bytes, job.stop.done
        )
        if problems:
            job.becomes("failed", **failed_with(problems))
            return
        job.count()
        if job.stop.done():
            job.becomes("cancelled")
            return
        job.becomes("in_progress")
        work = asyncio.create_task(self._lines(job, file))
        try:
            await asyncio.wait(
                {work, job.stop}, timeout=job.left_s, return_when=asyncio.FIRST_COMPLETED
            )
            end: Status = (
                "completed" if work.done() else "cancelled" if job.stop.done() else "expired"
            )
        finally:
            await ended(work)
        if end == "completed":
            work.result()
            job.becomes("finalizing")
        else:
            await _leave_rest(job, file, REASONS[end])
        job.close()
        job.becomes(end)

    async def _lines(self, job: Job, file: BinaryIO) -> None:
        """Answer all lines. Raises what keeps an answer from being written."""
        held = asyncio.Semaphore(self._concurrency)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await held.acquire()
                    if (line := next_line(file)) is None:
                        return
                    job.in_work[line.custom_id] = line
                    task = group.create_task(self._line(job, line))
                    task.add_done_callback(lambda _: held.release())
        except BaseExceptionGroup as failures:
            raise root_cause(failures) from failures

    async def _line(self, job: Job, line: Line) -> None:
        name, status = self._gateway.names(), 200
        try:
            answer = await self._answer(job, line, name)
        except Exception as error:
            if not isinstance(error, ServiceError):
                log.error("a request of batch %s failed", job.shown.id, exc_info=error)
            report = ErrorReport(error)
            status, answer = report.status, report.body
        del job.in_work[line.custom_id]
        job.answer(line, status, name, answer)

    async def _answer(self, job: Job, line: Line, name: str) -> object:
        """The answer to a line's request, tried again until it is accepted."""
        losses, counted = 0, False
        answer = self._endpoints[job.request.endpoint]
        while True:
            try:
                if reason := await self._obstacle():
                    raise Refused(f"the cluster waits for {reason}")
                async with self._turns:
                    if job.account is not None and not counted:
                        job.account.ask()
                        counted = True
                    return await answer(line.body, name, job.account)
            except Refused as error:
                await asyncio.sleep(min(WAIT_S, error.retry_after_s))
            except PeerLost:
                losses += 1
                if losses == TRIES:
                    raise
                await asyncio.sleep(LOST_S)

    async def _chat(self, body: msgspec.Raw, name: str, account: Account | None) -> object:
        request = await _request(body, ChatRequest)
        return await collect_chat(self._gateway.chat(request, name, NOBODY, account))

    async def _embedding(self, body: msgspec.Raw, name: str, account: Account | None) -> object:
        request = await _parsed(body, EmbeddingRequest)
        request = replace(request, sps2=_last(request.sps2 or EmbeddingExtension()))
        return await self._gateway.embed(request, name, NOBODY, account)

    async def _completion(self, body: msgspec.Raw, name: str, account: Account | None) -> object:
        request = await _request(body, CompletionRequest)
        return await collect_completion(self._gateway.complete(request, name, NOBODY, account))


async def _leave_rest(job: Job, file: BinaryIO, reason: Reason) -> None:
    for line in [*job.in_work.values()]:
        job.leave(line, reason)
    while (rest := next_line(file)) is not None:
        job.leave(rest, reason)
        await asyncio.sleep(0)


async def _request(body: msgspec.Raw, kind: type[R]) -> R:
    """The request of a line, with a low priority. Raises Invalid if it is wrong."""
    request = await _parsed(body, kind)
    if request.stream:
        raise Invalid("`stream` is not possible in a batch: leave it out", "stream", UNSUPPORTED)
    return replace(request, sps2=_last(request.sps2 or Extension()))


def _lowered(request: ChatRequest) -> ChatRequest:
    return replace(request, sps2=_last(request.sps2 or Extension()))


async def _parsed(body: msgspec.Raw, kind: type[T]) -> T:
    raw = bytes(body)
    return await asyncio.to_thread(parse, raw, kind) if len(raw) > SMALL else parse(raw, kind)


def _last(extension: E) -> E:
    """The parameters with a low priority."""
    if extension.progress:
        field = "sps2.progress"
        raise Invalid(f"`{field}` is not possible in a batch: leave it out", field, UNSUPPORTED)
    wanted = extension.priority
    return replace(extension, priority=PRIORITY if wanted is None else min(wanted, MOST_PRIORITY))
