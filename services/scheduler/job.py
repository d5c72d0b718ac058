"""Runs one request: lease, holds, prefill, decode, each for as long as it is needed."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress

from sps2.common.bus.peer import Peer
from sps2.common.errors import Internal, PeerLost, Preempted, Refused, ServiceError
from sps2.common.messages import (
    Commit,
    Decode,
    Decoded,
    Deposited,
    Expect,
    Filled,
    Finished,
    FirstToken,
    Held,
    Hold,
    Placed,
    Placement,
    Progress,
    Reserve,
    Shard,
    Short,
    Submit,
    Token,
)
from sps2.common.page_hashes import PromptHashes
from sps2.common.tracing import Trail
from sps2.services.scheduler.cached_prefix import hashes_from_disk, own_hashes, shared_hashes
from sps2.services.scheduler.contacts import Contacts
from sps2.services.scheduler.growth import Growth
from sps2.services.scheduler.job_listener import Listener
from sps2.services.scheduler.job_prefill import JobPrefill
from sps2.services.scheduler.plan import Plan
from sps2.services.scheduler.prompt_logprobs import prompt_logprobs
from sps2.services.tasks import end, gather_all, root_cause, within

log = logging.getLogger(__name__)

LEASE_S = 60.0
"""How long the directory may be away before a request without a lease fails."""
COMMIT_S = 2.0
"""How long the directory may take to record cached pages once decoding has ended."""
COMMIT_AGAIN_S = LEASE_AGAIN_S = 0.2

Emit = Callable[[Placed | Progress | FirstToken | Finished], None]


class Job:
    """Runs one plan of one request; all that it reserved is released when `run` ends.

    Args:
        hashes: of the pages that the prompt fills; none if nothing is to be cached.
        contacts: of the plan's shards.
        queued_s: how long the request was in the queue.
        trail: records where the time of the request goes.
        urgency: of the prefill, when it begins.
        growth_tokens: of the answer, for which room is added at once.
    """

    def __init__(
        self,
        submit: Submit,
        epoch: int,
        plan: Plan,
        hashes: PromptHashes,
        directory: Peer,
        contacts: Contacts,
        listener: Listener,
        queued_s: float,
        trail: Trail,
        urgency: Callable[[], float],
        growth_tokens: int,
    ) -> None:
        self._submit = submit
        self._epoch = epoch
        self._plan = plan
        self._hashes = hashes
        self._from_disk = hashes_from_disk(plan.placements, hashes.hashes, plan.prefix.page_tokens)
        self._own: dict[str, tuple[bytes, ...]] = {}
        """Hashes of the pages that this request has cached, by shard."""
        self._directory = directory
        self.contacts = contacts
        self._listener = listener
        self._queued_s = queued_s
        self._trail = trail
        self._urgency = urgency
        owner = contacts.bus(plan.owner)
        self._growth = Growth(submit, epoch, plan, growth_tokens, directory, owner, listener)
        self._stopped: asyncio.Future[ServiceError] = asyncio.get_running_loop().create_future()
        self._next: asyncio.Future[Plan] = asyncio.get_running_loop().create_future()

    def preempt(self) -> None:
        """Have `run` end with `Preempted`."""
        why = f"request {self._submit.request} gave its KV up"
        self.fail(Preempted(why, self._growth.answer_tokens))

    def fail(self, error: ServiceError) -> None:
        """Have `run` end with an error."""
        if not self._stopped.done():
            self._stopped.set_result(error)

    def proceed(self, plan: Plan, peers: Mapping[str, Peer], shards: Mapping[str, Shard]) -> None:
        """Compute the next chunk as planned; see `Contacts` for the plan's shards."""
        self.contacts.add(peers, shards)
        self._next.set_result(plan)

    async def run(self, emit: Emit) -> None:
        """Run the request to its end, emitting what the gateway needs to know.

        Raises:
            Refused: the directory or a shard had no room after all.
            PeerLost: a shard was lost meanwhile, or the directory is.
            Preempted: see `preempt`.
        """
        trail, plan = self._trail, self._plan
        try:
            async with asyncio.TaskGroup() as group:
                leased = asyncio.Event()
                keepers = [
                    group.create_task(self._keep_lease(leased)),
                    group.create_task(self._end_if_stopped()),
                ]
                name = self._directory.name
                late = PeerLost(name, f"the KV directory has not answered for {LEASE_S:g} s")
                with trail.during("lease"):
                    await within(LEASE_S, leased.wait(), late)
                places = plan.placements
                held = [asyncio.Event() for _ in places]
                filled = [asyncio.Event() for _ in places]
                keepers += [
                    group.create_task(self._keep_hold(*each))
                    for each in zip(places, held, filled, strict=True)
                ]
                prefill = JobPrefill(
                    self._submit,
                    self._epoch,
                    plan.prefix.tokens,
                    self.contacts,
                    self._listener,
                    group,
                    self._urgency,
                    emit,
                )
                with trail.during("join"):
                    await gather_all(prefill.join(plan), *(event.wait() for event in held))
                self._emit_placed(emit)
                if self._from_disk:
                    group.create_task(self._commit_restored())
                while True:
                    with trail.during("prefill", **self._described()) as prefilling:
                        await prefill.compute(self._plan, prefilling)
                    if self._plan.chunk.stop == len(self._submit.prompt) // 4:
                        break
                    with trail.during("transfer"):
                        await prefill.deposited()
                        await gather_all(*(event.wait() for event in filled))
                    filled = await self._begin_chunk(group, prefill)
                first = self._first(prefill, emit)
                with trail.during("transfer"):
                    await prefill.deposited()
                    prefill.leave()
                    await gather_all(*(event.wait() for event in filled))
                await self._decode(group, first, prefill.deposit, emit)
                for keeper in reversed(keepers):
                    keeper.cancel()
        except BaseExceptionGroup as failures:
            raise root_cause(failures) from failures

    def _emit_placed(self, emit: Emit) -> None:
        submit, plan = self._submit, self._plan
        emit(
            Placed(
                self._epoch,
                plan.owner,
                self.contacts.address(plan.owner),
                len(plan.group),
                plan.placements,
                plan.partition.attention,
                plan.partition.scheme,
                plan.partition.predicted_bytes,
                plan.migration_pays_after,
                plan.prefix.tokens,
                self._queued_s,
            )
        )
        if submit.progress:
            emit(Progress(plan.prefix.tokens, len(submit.prompt) // 4, plan.prefix.tokens))

    async def _begin_chunk(
        self, group: asyncio.TaskGroup, prefill: JobPrefill
    ) -> list[asyncio.Event]:
        """Have the next chunk planned, and its shards and keepers ready for it.

        Returns:
            Events that are set once keepers have the KV of that chunk.
        """
        group.create_task(self._commit_chunk(self._plan))
        self._listener.chunked()
        with self._trail.during("queue"):
            self._plan = await self._next
        self._next = asyncio.get_running_loop().create_future()
        places = [
            place for place in self._plan.placements if (place.span & self._plan.chunk).tokens
        ]
        accepted = [asyncio.Event() for _ in places]
        filled = [asyncio.Event() for _ in places]
        for each in zip(places, accepted, filled, strict=True):
            group.create_task(self._expect(*each))
        with self._trail.during("join"):
            await gather_all(prefill.join(self._plan), *(event.wait() for event in accepted))
        return filled

    def _first(self, prefill: JobPrefill, emit: Emit) -> Token:
        """Emit the first token."""
        first = next(reply.token for reply in prefill.replies if reply.token is not None)
        self._listener.prefilled(prefill.exchanged)
        scores = prompt_logprobs(self._submit, prefill.replies)
        later = prefill.chunks[1:]
        emit(
            FirstToken(
                first,
                scores,
                prefill.prefill_s,
                prefill.exchanged,
                tuple(len(plan.group) for plan in later),
                sum(sum(plan.partition.predicted_bytes.values()) for plan in later),
                tuple(reply.pooled for reply in prefill.replies if reply.pooled),
            )
        )
        return first

    async def _decode(
        self, group: asyncio.TaskGroup, first: Token, deposited: Deposited, emit: Emit
    ) -> None:
        submit, plan = self._submit, self._plan
        committing = asyncio.create_task(self._share())
        try:
            if first.finish is not None:
                await asyncio.wait({committing}, timeout=COMMIT_S)
                emit(Finished(1, 0, 0, deposited.deposit_bytes, deposited.saved_bytes))
                return
            holders = tuple(self.contacts.planes(each.shard) for each in plan.placements[:-1])
            with self._trail.during("decode") as trail:
                decode = Decode(
                    submit.request,
                    self._epoch,
                    submit.prompt,
                    first,
                    holders,
                    submit.sampling,
                    self._hashes.last,
                    trail.traceparent,
                )
                decoded = await self._decoded(group, decode)
            await asyncio.wait({committing}, timeout=COMMIT_S)
            if decoded.hashes and committing.done():
                with suppress(ServiceError):  # the owner reports them to the directory later
                    await self._commit({plan.owner: decoded.hashes})
            sent = deposited.deposit_bytes, deposited.saved_bytes
            emit(Finished(decoded.tokens, decoded.q_bytes, decoded.state_bytes, *sent))
        finally:
            await end(committing)

    async def _decoded(self, group: asyncio.TaskGroup, decode: Decode) -> Decoded:
        """Have the owner decode, and give it more pages as often as it needs some."""
        owner, growing = self._plan.owner, None
        with self.contacts.reporting(owner):
            async with self.contacts.bus(owner).stream(decode) as items:
                async for item in items:
                    match item:
                        case Short():
                            growing = group.create_task(self._grow())
                        case Decoded():
                            if growing is not None:
                                growing.cancel()
                            return item
        raise Internal(f"{owner} ended request {self._submit.request} early")

    async def _grow(self) -> None:
        with self.contacts.reporting(self._plan.owner):
            await self._growth.grow()

    async def _end_if_stopped(self) -> None:
        raise await self._stopped

    async def _commit_chunk(self, plan: Plan) -> None:
        """Report the pages of the chunks so far: should this be lost, it goes on behind them.

        No step depends on it: at the end all are reported.
        """
        page_tokens = plan.prefix.page_tokens
        hashes = self._hashes.hashes[: plan.chunk.stop // page_tokens]
        with suppress(ServiceError):
            await self._commit(own_hashes(plan.placements, hashes, page_tokens))

    async def _commit_restored(self) -> None:
        """Report the pages that were read from disk; if that fails, nobody else shares them yet."""
        with suppress(ServiceError):
            await self._commit(self._from_disk)

    async def _share(self) -> None:
        """Report the prompt's cached pages to the directory; retries after the directory was lost.

        No step depends on it: what this does not report, the shards will.
        """
        plan = self._plan
        hashes = own_hashes(plan.placements, self._hashes.hashes, plan.prefix.page_tokens)
        with self._trail.during("commit"):
            while True:
                try:
                    await self._commit(hashes)
                    break
                except ServiceError as error:
                    log.info("request %s: commit: %s; again", self._submit.request, error)
                    await asyncio.sleep(COMMIT_AGAIN_S)
        self._listener.shareable()

    def _described(self) -> dict[str, str | float]:
        """Details of the prefill for its trace span."""
        plan, scheme = self._plan, self._plan.partition.scheme
        return {
            "epoch": self._epoch,
            "attention": plan.partition.attention,
            "method": scheme.method,
            "sp_degree": len(plan.group),
            "cached_tokens": plan.prefix.tokens,
        }

    async def _commit(self, hashes: dict[str, tuple[bytes, ...]]) -> None:
        committed = await self._directory.call(Commit(self._submit.request, self._epoch, hashes))
        for shard, own in committed.hashes.items():
            self._own[shard] = self._own.get(shard, ()) + own

    async def _keep_lease(self, leased: asyncio.Event) -> None:
        """Hold the lease; after a loss of the directory, have the lease restored there."""
        plan = self._plan
        shared = shared_hashes(plan.placements, self._hashes.hashes, plan.prefix.page_tokens)
        while True:
            reserve = Reserve(
                self._submit.request,
                self._epoch,
                self._growth.placements,
                shared,
                leased.is_set(),
                self._own,
                self._from_disk,
            )
            try:
                async with self._directory.stream(reserve) as rooms:
                    async for room in rooms:
                        if not leased.is_set():
                            self._listener.granted(room)
                            leased.set()
            except PeerLost:
                if not leased.is_set():
                    raise Refused("the KV directory was lost; retry") from None
                await asyncio.sleep(LEASE_AGAIN_S)

    async def _keep_hold(
        self, place: Placement, held: asyncio.Event, filled: asyncio.Event
    ) -> None:
        plan, has_kv = self._plan, bool((place.span & self._plan.chunk).tokens)
        hold = Hold(
            self._submit.request,
            self._epoch,
            place.span,
            max(place.span.tokens, place.pages * plan.prefix.page_tokens),
            self._hashes.hashes,
            place.shared,
            sources=self.contacts.planes(*plan.group) if has_kv else (),
            traceparent=self._trail.traceparent,
            from_disk=place.from_disk,
            stop=plan.chunk.stop,
        )
        with self.contacts.reporting(place.shard):
            async with self.contacts.bus(place.shard).stream(hold) as items:
                await _note(items, held, filled)
        raise Internal(f"{place.shard} let go of request {self._submit.request}")

    async def _expect(
        self, place: Placement, accepted: asyncio.Event, filled: asyncio.Event
    ) -> None:
        """Have a keeper take the KV of the chunk."""
        plan = self._plan
        sources = self.contacts.planes(*plan.group)
        expect = Expect(self._submit.request, self._epoch, plan.chunk.stop, sources)
        with self.contacts.reporting(place.shard):
            async with self.contacts.bus(place.shard).stream(expect) as items:
                await _note(items, accepted, filled)


async def _note(
    items: AsyncIterator[Held | Filled], held: asyncio.Event, filled: asyncio.Event
) -> None:
    async for item in items:
        (held if isinstance(item, Held) else filled).set()
