"""Runs one choice in the cluster: submits it, follows its owner, yields its tokens in order."""

import asyncio
import logging
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from sps2.common.bus.peer import Peer
from sps2.common.errors import PeerLost, Preempted, Refused, ServiceError
from sps2.common.messages import (
    Describe,
    Displaced,
    Finished,
    FirstToken,
    Follow,
    Placed,
    PrefillOptions,
    Progress,
    Sampling,
    Stream,
    Submit,
    Token,
)
from sps2.services.gateway.shards import Shards
from sps2.services.tasks import emitted_by, root_cause

log = logging.getLogger(__name__)

LOSSES = 2
"""How often an answer may go on after the loss of a shard, and as often after the scheduler's."""
RESTART_S = 30.0
"""How long a lost scheduler may take until it answers again."""

T = TypeVar("T")

PATIENCE_S = 4.0
"""How long an owner may be unreachable while the scheduler reports no loss; and how long totals may
take to follow the last token."""
AGAIN_S = 0.1
"""Pause between two attempts to follow an owner."""
LATE_S = 1.0
"""How long the tokens before a failure may take to follow the scheduler's word of it."""


class Job(msgspec.Struct, frozen=True):
    """One choice, ready to be submitted. `silent` drops its only token (`max_tokens` 0)."""

    request: str
    prompt: tuple[int, ...]
    sampling: Sampling
    stops: tuple[str, ...] = ()
    options: PrefillOptions = PrefillOptions()
    silent: bool = False
    cache_salt: str = ""
    progress: bool = False
    open_ended: bool = False
    """Whether `max_tokens` was left open, so that the scheduler may cut it."""
    priority: int = 0
    max_ttft_s: float | None = None
    caller: str = ""
    """The name of the API key; empty if there is none."""
    room_tokens: int = 0
    """See `Submit`."""
    shown: frozenset[int] = frozenset()
    """Special tokens whose text the parser of the answer needs."""
    shows_special: bool = False
    """Whether special tokens have their text in the answer."""
    shows_stop: bool = False
    """Whether the answer has the text of what ended it."""

    def submit(self, traceparent: str = "") -> Submit:
        """The message that submits it; see there."""
        return Submit(
            self.request,
            struct.pack(f"<{len(self.prompt)}i", *self.prompt),
            self.sampling,
            self.options,
            self.cache_salt,
            self.progress,
            self.open_ended,
            self.caller,
            self.room_tokens,
            traceparent,
            self.priority,
            self.max_ttft_s,
        )


@dataclass
class Record:
    """What is known of a job so far; filled in while it runs."""

    since_s: float
    placed: Placed | None = None
    first: FirstToken | None = None
    finished: Finished | None = None
    tokens: int = 0
    ttft_s: float = 0.0


class Generation:
    """The tokens of one job, each once and in order, from the scheduler and its owners.

    Args:
        record: filled in as the job runs; the totals are complete when the iteration has ended.
        advanced: called with the prefill's progress, if the job requests it.
        traceparent: of the answer's trace.
        placed: called whenever the job has left the scheduler's queue.
    """

    def __init__(
        self,
        job: Job,
        record: Record,
        scheduler: Peer,
        shards: Shards,
        patience_s: float = PATIENCE_S,
        restart_s: float = RESTART_S,
        advanced: Callable[[Progress], None] = lambda progress: None,
        traceparent: str = "",
        placed: Callable[[], None] = lambda: None,
    ) -> None:
        self._job = job
        self._record = record
        self._scheduler = scheduler
        self._shards = shards
        self._patience_s = patience_s
        self._restart_s = restart_s
        self._advanced = advanced
        self._traceparent = traceparent
        self._placed = placed
        self._ids: list[int] = []
        """Ids of the tokens so far."""
        self._early: dict[int, Token] = {}
        self._is_complete = False
        self._clock: asyncio.Timeout | None = None

    async def tokens(self) -> AsyncGenerator[Token, None]:
        """Yield the tokens; ending the iteration early cancels the request everywhere.

        Raises:
            Refused, Invalid: from the scheduler.
            PeerLost: a shard was lost before the first token, the scheduler does not come back, or
                one of them was lost more than `LOSSES` times. Otherwise the answer so far is
                submitted again with the prompt.
        """
        async with aclosing(emitted_by(self._run)) as tokens:  # type: ignore[type-var]
            async for token in tokens:
                self._record.tokens += 1  # those that arrived after a stop string do not count
                yield token

    async def _run(self, emit: Callable[[Token], None]) -> None:
        losses, restarts, preemptions, room_tokens, job = 0, 0, 0, 0, self._job
        while True:
            try:
                await self._live(job, emit)
                return
            except (PeerLost, Preempted) as end:
                if self._is_complete:
                    return  # without its totals
                if isinstance(end, Preempted):
                    preemptions, room_tokens = preemptions + 1, 2 * end.answer_tokens
                elif end.peer in (self._scheduler.name, self._scheduler.address):
                    restarts += 1
                    if restarts > LOSSES or not await self._scheduler_is_back():
                        raise
                else:
                    losses += 1
                    if not self._ids or losses > LOSSES:
                        raise
                log.warning("%s: %s; goes on after %d tokens", job.request, end, len(self._ids))
                job = self._rest(losses + restarts + preemptions, room_tokens)

    async def _scheduler_is_back(self) -> bool:
        """Wait until the scheduler answers again; false if it takes too long."""
        try:
            async with asyncio.timeout(self._restart_s):
                while True:
                    with suppress(PeerLost, Refused):  # it is gone, or about to go
                        await self._scheduler.call(Describe())
                        return True
                    await asyncio.sleep(AGAIN_S)
        except TimeoutError:
            return False

    def _rest(self, number: int, room_tokens: int) -> Job:
        """The rest of the job, under a new name: shards may still know the old one."""
        job = self._job
        self._early.clear()
        if not self._ids:
            return replace(job, request=f"{job.request}.{number}")
        sampling = replace(
            job.sampling, answered=len(self._ids), prompt_logprobs=None, pooling=None
        )
        return replace(
            job,
            request=f"{job.request}.{number}",
            prompt=(*job.prompt, *self._ids),
            sampling=sampling,
            progress=False,
            max_ttft_s=None,
            room_tokens=room_tokens,
        )

    async def _live(self, job: Job, emit: Callable[[Token], None]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                await self._submit(job, group, emit)
        except BaseExceptionGroup as failures:
            raise root_cause(failures) from failures

    async def _submit(
        self, job: Job, group: asyncio.TaskGroup, emit: Callable[[Token], None]
    ) -> None:
        record = self._record
        submit = job.submit(self._traceparent)
        follower: asyncio.Task[None] | None = None
        try:
            async with (
                asyncio.timeout(None) as self._clock,
                self._opened(self._scheduler, submit) as items,
            ):
                async for item in items:
                    match item:
                        case Placed():
                            self._placed()
                            record.placed = _also(record.placed, item, job.sampling.answered)
                            if follower is not None:
                                follower.cancel()
                            follower = group.create_task(self._follow(job, item, emit))
                        case Displaced():
                            if follower is not None:
                                follower.cancel()
                        case Progress():
                            self._advanced(item)
                        case FirstToken():
                            if not job.sampling.answered:
                                record.first = item
                            self._arrive(item.token, emit)
                        case Finished():
                            record.finished = item
        except TimeoutError:
            if not self._is_complete:
                raise
        except (PeerLost, Preempted):
            raise  # the answer goes on elsewhere
        except ServiceError:
            if follower is not None:
                await asyncio.wait({follower}, timeout=LATE_S)
            raise
        finally:
            self._clock = None

        if follower is not None and not self._is_complete:
            await asyncio.wait({follower})  # it ends when no token can come
        if not self._is_complete:
            raise PeerLost(self._scheduler.name, "the request ended before its last token came")
        if follower is not None:
            follower.cancel()

    @asynccontextmanager
    async def _opened(self, peer: Peer, request: Stream[T]) -> AsyncIterator[AsyncIterator[T]]:
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._patience_s):
                    items = await stack.enter_async_context(peer.stream(request))
            except TimeoutError:
                raise PeerLost(peer.name, f"{peer.name} cannot be reached") from None
            yield items

    async def _follow(self, job: Job, placed: Placed, emit: Callable[[Token], None]) -> None:
        """Read tokens from their owner; reconnects if the connection is lost.

        If the owner has released the request, the scheduler decides how it goes on.

        Raises:
            PeerLost: the owner cannot be reached, or sent too few tokens.
        """
        loop = asyncio.get_running_loop()
        until_s = 0.0
        while not self._is_complete:
            owner = self._shards.at(placed.owner_address, placed.owner)
            before = len(self._ids)
            try:
                follow = Follow(job.request, placed.epoch, max(1, before))
                async with self._opened(owner, follow) as tokens:
                    async for token in tokens:
                        self._arrive(token, emit)
                error = PeerLost(placed.owner, f"{placed.owner} sent too few tokens")
            except PeerLost as lost:
                self._shards.drop(owner)
                error = lost
            except Refused as refused:
                error = PeerLost(placed.owner, str(refused))
            except ServiceError as failure:
                log.info("%s: %s; the scheduler decides", job.request, failure)
                return
            if not until_s or len(self._ids) > before:
                until_s = loop.time() + self._patience_s
            if loop.time() >= until_s and not self._is_complete:
                raise error
            await asyncio.sleep(AGAIN_S)

    def _arrive(self, token: Token, emit: Callable[[Token], None]) -> None:
        if token.index >= len(self._ids):
            self._early.setdefault(token.index, token)
        while not self._is_complete and len(self._ids) in self._early:
            token = self._early.pop(len(self._ids))
            self._ids.append(token.id)
            self._is_complete = token.finish is not None
            emit(token)
        if self._is_complete and self._clock is not None:
            self._clock.reschedule(asyncio.get_running_loop().time() + self._patience_s)


def _also(before: Placed | None, now: Placed, answered: int) -> Placed:
    """The placement to report.

    An answer that goes on elsewhere after a loss is reported as planned again.
    """
    if before is None or not answered:
        return now
    cached, queued_s = before.cached_tokens, before.queued_s
    return replace(now, epoch=before.epoch + 1, cached_tokens=cached, queued_s=queued_s)
