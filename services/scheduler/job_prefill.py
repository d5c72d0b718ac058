"""The prefill of a job: its ranks join, and compute the prompt, in chunks if it is long."""

import asyncio
import time
from collections.abc import Callable, Sequence

from sps2.common.errors import Internal
from sps2.common.messages import (
    Advanced,
    Deposited,
    Exchanged,
    Join,
    Prefill,
    Prefilled,
    PrefillRank,
    Progress,
    Source,
    Submit,
    Target,
)
from sps2.common.tracing import Trail
from sps2.services.scheduler.contacts import Contacts
from sps2.services.scheduler.events import Moved
from sps2.services.scheduler.job_listener import Listener
from sps2.services.scheduler.plan import Plan
from sps2.services.scheduler.prefill_progress import Eta
from sps2.services.tasks import gather_all


class JobPrefill:
    """Runs the ranks of one request's plans, each of which has a chunk of its prompt.

    Args:
        group: of the job; if a task of it fails, the job does.
        urgency: of the prefill, when a chunk begins.
        emit: receives progress, if the request wants that.
    """

    def __init__(
        self,
        submit: Submit,
        epoch: int,
        cached: int,
        contacts: Contacts,
        listener: Listener,
        group: asyncio.TaskGroup,
        urgency: Callable[[], float],
        emit: Callable[[Progress], None],
    ) -> None:
        self._submit = submit
        self._epoch = epoch
        self._contacts = contacts
        self._listener = listener
        self._group = group
        self._urgency = urgency
        self._emit = emit
        self._eta = Eta(len(submit.prompt) // 4, cached, time.monotonic())
        self._joined: dict[str, asyncio.Task[None]] = {}
        self._running: list[asyncio.Task[Deposited]] = []
        self.replies: list[Prefilled] = []
        """Of all ranks of all chunks so far."""
        self.prefill_s = 0.0
        """Seconds of the slowest rank of each chunk, added up."""
        self.deposit = Deposited(0)
        """The KV sent to decode shards so far."""
        self.chunks: list[Plan] = []
        """The plans of the chunks so far."""
        self._exchanged: dict[str, Exchanged] = {}

    @property
    def exchanged(self) -> tuple[Exchanged, ...]:
        """Of each shard that computed any of the prompt."""
        return tuple(self._exchanged.values())

    async def join(self, plan: Plan) -> None:
        """Have the shards of a plan accept each other's frames, as far as they do not yet."""
        events = []
        for shard in plan.group:
            if shard not in self._joined:
                events.append(asyncio.Event())
                keep = self._keep_joined(shard, events[-1])
                self._joined[shard] = self._group.create_task(keep)
        await gather_all(*(event.wait() for event in events))

    async def compute(self, plan: Plan, trail: Trail) -> None:
        """Compute the chunk of a plan, whose shards have joined."""
        loop = asyncio.get_running_loop()
        replied = [loop.create_future() for _ in plan.group]
        self._running = [
            self._group.create_task(self._prefill(plan, rank, future, trail))
            for rank, future in enumerate(replied)
        ]
        replies: Sequence[Prefilled] = await gather_all(*replied)
        if plan.chunk.stop < len(self._submit.prompt) // 4:
            self._report(self._eta.finish(plan.chunk.stop, time.monotonic()))
        self.chunks.append(plan)
        seconds = tuple(reply.exchanged.compute_s for reply in replies)
        self._listener.computed(seconds, self._moved(plan, replies))
        self.replies += replies
        self.prefill_s += max(reply.prefill_s for reply in replies)
        for shard, reply in zip(plan.group, replies, strict=True):
            before = self._exchanged.get(shard)
            self._exchanged[shard] = both(before, reply.exchanged) if before else reply.exchanged

    async def deposited(self) -> None:
        """Wait until the KV of the chunk has left its ranks."""
        parts = [self.deposit, *await gather_all(*self._running)]
        sent, saved = (part.deposit_bytes for part in parts), (part.saved_bytes for part in parts)
        self.deposit = Deposited(sum(sent), sum(saved))
        self._running = []

    def leave(self) -> None:
        """All is computed: the shards need not accept each other's frames any more."""
        for task in self._joined.values():
            task.cancel()

    async def _prefill(
        self, plan: Plan, rank: int, replied: asyncio.Future[Prefilled], trail: Trail
    ) -> Deposited:
        """Run one rank's part; returns what it sent to decode shards."""
        submit, contacts, shard = self._submit, self._contacts, plan.group[rank]
        members = tuple(
            PrefillRank(contacts.planes(shard), spans)
            for shard, spans in zip(plan.group, plan.partition.spans, strict=True)
        )
        targets = tuple(
            Target(contacts.planes(place.shard), place.span)
            for place in plan.placements
            if (place.span & plan.chunk).tokens
        )
        sources = tuple(
            Source(contacts.planes(shard), spans)
            for shard, spans in plan.before(plan.chunk.start).items()
        )
        prefill = Prefill(
            submit.request,
            self._epoch,
            submit.prompt,
            members,
            rank,
            targets,
            submit.sampling,
            plan.partition.scheme,
            sources,
            trail.traceparent,
            self._urgency(),
            plan.threads,
            plan.shares_steps,
        )
        with contacts.reporting(shard):
            async with contacts.bus(shard).stream(prefill) as items:
                async for item in items:
                    match item:
                        case Advanced(tokens):
                            self._report(self._eta.advance(rank, tokens, time.monotonic()))
                        case Prefilled():
                            if not replied.done():  # nobody waits after another rank has failed
                                replied.set_result(item)
                        case Deposited():
                            return item
        raise Internal(f"{shard} ended its part of request {submit.request} early")

    def _moved(self, plan: Plan, replies: Sequence[Prefilled]) -> tuple[Moved, ...]:
        """What the ranks of a chunk received, by the shards that it came from."""
        senders = {
            each.name: shard for shard in plan.shards for each in self._contacts.planes(shard)
        }
        return tuple(
            Moved(senders[each.peer], target, each.nbytes, each.seconds)
            for target, reply in zip(plan.group, replies, strict=True)
            for each in reply.received
            if each.peer in senders
        )

    def _report(self, progress: Progress | None) -> None:
        if progress is not None:
            self._listener.advanced(progress)
            if self._submit.progress:
                self._emit(progress)

    async def _keep_joined(self, shard: str, joined: asyncio.Event) -> None:
        join = Join(self._submit.request, self._epoch, self._contacts.planes())
        with self._contacts.reporting(shard):
            async with self._contacts.bus(shard).stream(join) as accepted:
                async for _ in accepted:
                    joined.set()
        raise Internal(f"{shard} left the group of request {self._submit.request}")


def both(one: Exchanged, other: Exchanged) -> Exchanged:
    """The exchange of one shard in two chunks together; of `lost` the larger."""
    purposes = {**one.sent_bytes, **other.sent_bytes}
    sent = {
        purpose: one.sent_bytes.get(purpose, 0) + other.sent_bytes.get(purpose, 0)
        for purpose in purposes
    }
    lost = tuple(map(max, one.lost, other.lost))
    return Exchanged(
        sent,
        one.compute_s + other.compute_s,
        one.attention_s + other.attention_s,
        one.exchange_s + other.exchange_s,
        one.hidden_s + other.hidden_s,
        one.blocks + other.blocks,
        one.kept_blocks + other.kept_blocks,
        lost if one.lost and other.lost else one.lost or other.lost,
        one.saved_bytes + other.saved_bytes,
    )
