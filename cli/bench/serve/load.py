"""Sends requests when they are due, and collects what comes back."""

import asyncio
import gc
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field

from sps2.cli.bench.serve.backends import Backend, Prompt
from sps2.cli.bench.serve.jobs import Job
from sps2.cli.bench.serve.reply import Reply

Places = AbstractAsyncContextManager[object]
NO_ANSWER = "the answer had no tokens"


@dataclass
class Load:
    """One run against one server. Its fields can be read while it runs.

    jobs: by time. max_concurrency: requests that may be in work at once.
    """

    jobs: Sequence[Job]
    backend: Backend
    max_concurrency: int | None = None
    replies: list[Reply] = field(default_factory=list)
    """Of the requests that were sent, or wait for their place, in the order of sending."""
    started_s: float = 0.0
    ended_s: float = 0.0
    is_interrupted: bool = False
    unsent: int = 0
    """Turns whose session ended early, because a turn before them failed."""

    async def run(self) -> None:
        """Return when every request has ended. If the task is cancelled, end the requests in
        work and return."""
        sessions = _sessions(self.jobs)
        places = _places(self.max_concurrency)
        gc.collect()
        gc.freeze()  # a collection would take time from requests in work
        self.started_s = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for jobs in sessions:
                    prompt = self._early(jobs[0], [])
                    due_s = self.started_s + jobs[0].turn.at_s
                    if (early_s := due_s - time.perf_counter()) > 0:
                        await asyncio.sleep(early_s)
                    group.create_task(self._session(jobs, prompt, due_s, places))
        except asyncio.CancelledError:
            self.is_interrupted = True
        finally:
            self.ended_s = time.perf_counter()
            gc.unfreeze()

    def _early(self, job: Job, answers: Sequence[str]) -> Prompt | None:
        """Its prompt, made before it is due; not where many may wait for their place."""
        return job.prompt(answers) if self.max_concurrency is None else None

    async def _session(
        self, jobs: Sequence[Job], prompt: Prompt | None, due_s: float, places: Places
    ) -> None:
        """One request, and those that follow it in its session, each after the answer before."""
        answers: list[str] = []
        for index, job in enumerate(jobs):
            if index:
                prompt = self._early(job, answers)
                due_s += job.turn.think_s or 0.0
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            reply = Reply(due_s, job.turn.prompt_tokens, ready_s=time.perf_counter())
            self.replies.append(reply)
            async with places:
                await ask(self.backend, job, prompt or job.prompt(answers), reply)
            if reply.state == "failed":
                self.unsent += len(jobs) - index - 1
                return
            answers.append(reply.text)
            due_s = time.perf_counter()


async def ask(backend: Backend, job: Job, prompt: Prompt, reply: Reply) -> None:
    """Send one request, and judge what came."""
    reply.state = "running"
    await backend.ask(prompt, job.turn.answer_tokens, reply)
    if not reply.error and not reply.stamps_s:
        reply.error = NO_ANSWER
    reply.state = "failed" if reply.error else "done"


async def warm_up(backend: Backend, job: Job, count: int, max_concurrency: int | None) -> str:
    """Ask the first request `count` times. Returns the first error, if any."""
    places = _places(max_concurrency)
    prompt = job.prompt([])

    async def once() -> str:
        reply = Reply(0.0, job.turn.prompt_tokens)
        async with places:
            await ask(backend, job, prompt, reply)
        return reply.error

    return next(filter(None, await asyncio.gather(*(once() for _ in range(count)))), "")


def _sessions(jobs: Sequence[Job]) -> list[list[Job]]:
    """Each request with those that are sent after its answer, by the time of the first."""
    sessions: list[list[Job]] = []
    latest: dict[str, list[Job]] = {}
    for job in jobs:
        session = latest.get(job.turn.session)
        if session is not None and job.turn.think_s is not None:
            session.append(job)
            continue
        sessions.append([job])
        if job.turn.session:
            latest[job.turn.session] = sessions[-1]
    return sessions


def _places(max_concurrency: int | None) -> Places:
    return nullcontext() if max_concurrency is None else asyncio.Semaphore(max_concurrency)
