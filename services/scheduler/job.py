"""Runs one request: lease, holds, prefill, decode, each for as long as it is needed."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from sps2.common.bus.peer import Peer
from sps2.common.errors import Internal, PeerLost, Preempted, Refused, ServiceError
from sps2.common.messages import (
    Advanced,
    Commit,
    Decode,
    Decoded,
    Deposited,
    Filled,
    Finished,
    FirstToken,
    Held,
    Hold,
    Join,
    Placed,
    Placement,
    Prefill,
    Prefilled,
    PrefillRank,
    Progress,
    Reserve,
    Shard,
    Short,
    Source,
    Submit,
    Target,
    Token,
)
from sps2.common.page_hashes import PromptHashes
from sps2.common.tracing import Trail
from sps2.services.scheduler.cached_prefix import own_hashes, shared_hashes
from sps2.services.scheduler.growth import Growth
from sps2.services.scheduler.job_listener import Listener
from sps2.services.scheduler.plan import Plan
from sps2.services.scheduler.prefill_progress import Eta
from sps2.services.scheduler.prompt_logprobs import prompt_logprobs
from sps2.services.tasks import end, gather_all, root_cause

log = logging.getLogger(__name__)

COMMIT_S = 2.0
"""How long the directory may take to record cached pages once decoding has ended."""
COMMIT_AGAIN_S = 0.2


Emit = Callable[[Placed | Progress | FirstToken | Finished], None]


class Job:
    """Runs one plan of one request; all that it reserved is released when `run` ends.

    Args:
        hashes: of the pages that the prompt fills; none if nothing is to be cached.
        peers: control-bus peers by shard id, for every shard of the plan.
        shards: the shards of the plan by id, as they were when it was made.
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
        peers: Mapping[str, Peer],
        shards: Mapping[str, Shard],
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
        self._own: dict[str, tuple[bytes, ...]] = {}
        """Hashes of the pages that this request has cached, by shard."""
        self._directory = directory
        self._peers = peers
        self._shards = shards
        self._listener = listener
        self._queued_s = queued_s
        self._trail = trail
        self._urgency = urgency
        owner = plan.owner
        self._growth = Growth(submit, epoch, plan, growth_tokens, directory, peers[owner], listener)
        self._preempted = asyncio.Event()

    def preempt(self) -> None:
        """Have `run` end with `Preempted`."""
        self._preempted.set()

    async def run(self, emit: Emit) -> None:
        """Run the request to its end, emitting what the gateway needs to know.

        Raises:
            Refused: the directory or a shard had no room after all.
            PeerLost: a shard was lost meanwhile.
            Preempted: see `preempt`.
        """
        trail = self._trail
        try:
            async with asyncio.TaskGroup() as group:
                leased = asyncio.Event()
                keepers = [
                    group.create_task(self._keep_lease(leased)),
                    group.create_task(self._end_if_preempted()),
                ]
                with trail.during("lease"):
                    await leased.wait()
                places = self._plan.placements
                held = [asyncio.Event() for _ in places]
                filled = [asyncio.Event() for _ in places]
                joined = [asyncio.Event() for _ in self._plan.group]
                keepers += [
                    group.create_task(self._keep_hold(*each))
                    for each in zip(places, held, filled, strict=True)
                ]
                joiners = [
                    group.create_task(self._keep_joined(*each))
                    for each in zip(self._plan.group, joined, strict=True)
                ]
                with trail.during("join"):
                    await gather_all(*(event.wait() for event in (*held, *joined)))
                loop = asyncio.get_running_loop()
                replied = [loop.create_future() for _ in self._plan.group]
                tokens, cached = len(self._submit.prompt) // 4, self._plan.prefix.tokens
                eta = Eta(tokens, cached, time.monotonic())
                with trail.during("prefill", **self._described()) as prefilling:
                    prefills = [
                        group.create_task(self._prefill(rank, future, eta, prefilling, emit))
                        for rank, future in enumerate(replied)
                    ]
                    first = await self._first(replied, emit)
                with trail.during("transfer"):
                    deposited = sum(await gather_all(*prefills))
                    for joiner in joiners:
                        joiner.cancel()
                    await gather_all(*(event.wait() for event in filled))
                await self._decode(group, first, deposited, emit)
                for keeper in reversed(keepers):
                    keeper.cancel()
        except BaseExceptionGroup as failures:
            raise root_cause(failures) from failures

    async def _first(self, replied: list[asyncio.Future[Prefilled]], emit: Emit) -> Token:
        submit, plan = self._submit, self._plan
        owner = self._shards[plan.owner]
        emit(
            Placed(
                self._epoch,
                owner.id,
                owner.address,
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
        replies = await gather_all(*replied)
        first = next(reply.token for reply in replies if reply.token is not None)
        exchanged = tuple(reply.exchanged for reply in replies)
        self._listener.prefilled(exchanged)
        took_s = max(reply.prefill_s for reply in replies)
        emit(FirstToken(first, prompt_logprobs(submit, replies), took_s, exchanged))
        return first

    async def _prefill(
        self,
        rank: int,
        replied: asyncio.Future[Prefilled],
        eta: Eta,
        trail: Trail,
        emit: Emit,
    ) -> int:
        """Run one rank's part; returns how many bytes of KV it sent to decode shards."""
        submit, plan = self._submit, self._plan
        members = tuple(
            PrefillRank(self._shards[shard].peers, spans)
            for shard, spans in zip(plan.group, plan.partition.spans, strict=True)
        )
        targets = tuple(
            Target(self._shards[place.shard].peers, place.span)
            for place in plan.placements
            if place.span.tokens
        )
        sources = tuple(
            Source(self._shards[place.shard].peers, place.shared)
            for place in plan.placements
            if place.shared
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
        )
        shard = plan.group[rank]
        with self._reporting(shard):
            async with self._peers[shard].stream(prefill) as items:
                async for item in items:
                    match item:
                        case Advanced(tokens):
                            if progress := eta.advance(rank, tokens, time.monotonic()):
                                self._listener.advanced(progress)
                                if submit.progress:
                                    emit(progress)
                        case Prefilled():
                            if not replied.done():  # nobody waits after another rank has failed
                                replied.set_result(item)
                        case Deposited(nbytes):
                            return nbytes
        raise Internal(f"{shard} ended its part of request {submit.request} early")

    async def _decode(
        self, group: asyncio.TaskGroup, first: Token, deposited: int, emit: Emit
    ) -> None:
        submit, plan = self._submit, self._plan
        committing = asyncio.create_task(self._share())
        try:
            if first.finish is not None:
                await asyncio.wait({committing}, timeout=COMMIT_S)
                emit(Finished(1, 0, 0, deposited))
                return
            holders = tuple(self._shards[place.shard].peers for place in plan.placements[:-1])
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
            emit(Finished(decoded.tokens, decoded.q_bytes, decoded.state_bytes, deposited))
        finally:
            await end(committing)

    async def _decoded(self, group: asyncio.TaskGroup, decode: Decode) -> Decoded:
        """Have the owner decode, and give it more pages as often as it needs some."""
        owner, growing = self._plan.owner, None
        with self._reporting(owner):
            async with self._peers[owner].stream(decode) as items:
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
        with self._reporting(self._plan.owner):
            await self._growth.grow()

    async def _end_if_preempted(self) -> None:
        await self._preempted.wait()
        why = f"request {self._submit.request} gave its KV up to others"
        raise Preempted(why, self._growth.answer_tokens)

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

    async def _keep_hold(
        self, place: Placement, held: asyncio.Event, filled: asyncio.Event
    ) -> None:
        sources = [peer for rank in self._plan.group for peer in self._shards[rank].peers]
        hold = Hold(
            self._submit.request,
            self._epoch,
            place.span,
            max(place.span.tokens, place.pages * self._plan.prefix.page_tokens),
            self._hashes.hashes,
            place.shared,
            sources=tuple(sources) if place.span.tokens else (),
            traceparent=self._trail.traceparent,
        )
        with self._reporting(place.shard):
            async with self._peers[place.shard].stream(hold) as items:
                async for item in items:
                    match item:
                        case Held():
                            held.set()
                        case Filled():
                            filled.set()
        raise Internal(f"{place.shard} let go of request {self._submit.request}")

    async def _keep_joined(self, shard: str, joined: asyncio.Event) -> None:
        peers = [peer for member in self._shards.values() for peer in member.peers]
        join = Join(self._submit.request, self._epoch, tuple(peers))
        with self._reporting(shard):
            async with self._peers[shard].stream(join) as accepted:
                async for _ in accepted:
                    joined.set()
        raise Internal(f"{shard} left the group of request {self._submit.request}")

    @contextmanager
    def _reporting(self, shard: str) -> Iterator[None]:
        """Notify the listener if the call fails because a peer was lost: the called shard, or one
        that this shard has lost on the data plane."""
        try:
            yield
        except PeerLost as lost:
            if lost.peer == self._peers[shard].name:
                self._listener.lost(self._shards[shard], self._peers[shard])
            else:
                self._listener.parted(self._shards[shard], lost.peer)
            raise
