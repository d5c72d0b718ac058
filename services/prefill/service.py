"""A prefill shard on the bus."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

from sps2.common.errors import Invalid, PeerLost
from sps2.common.grammar import Grammars
from sps2.common.messages import Advanced, Deposited, Done, Join, Peer, Prefill, Prefilled, Urge
from sps2.common.model.collectives import Turn
from sps2.common.model.llama import Llama
from sps2.common.tracing import FORGETFUL, Recorder
from sps2.common.transport.inbox import Inbox
from sps2.common.transport.plane import Plane
from sps2.services.data_loop import DataLoop
from sps2.services.prefill.compute_queue import Compute, Thread
from sps2.services.prefill.layers import layers
from sps2.services.prefill.local_pages import NO_PAGES, LocalPages
from sps2.services.prefill.own_rate import own_gflops
from sps2.services.prefill.passes import Passes
from sps2.services.prefill.progress import Progress, Tally
from sps2.services.prefill.prompt import run_prompt, turn_of
from sps2.services.prefill.threads import with_threads
from sps2.services.prefill.timeline import Timeline
from sps2.services.prefill.tp_answers import Emit, Followers, Parts
from sps2.services.tasks import emitted_by, forever, gather_all, root_cause
from sps2.services.tp_processes import Led, opened


class PrefillService:
    """Handlers of a prefill shard; arithmetic runs in its own thread, while the loop moves tensors.

    Args:
        data: the event loop that `plane` runs on.
        led: the other processes of the shard, if this one leads it.
        pages: the pages of this process, if it has any.
        traces: records where the time of each request goes.
        grammars: of the model, for answers that follow one.
    """

    def __init__(
        self,
        model: Llama,
        plane: Plane,
        data: DataLoop,
        led: Sequence[Led] = (),
        pages: LocalPages = NO_PAGES,
        traces: Recorder = FORGETFUL,
        grammars: Grammars | None = None,
    ) -> None:
        self._grammars = grammars
        self._model = model
        self._plane = plane
        self._data = data
        self._pages = pages
        self._traces = traces
        self._followers = Followers([each.bus for each in led])
        self._thread = Thread(plane.device.compute)
        self._compute = Compute(self._thread)
        self.passes = Passes(model, self._compute, pages.decoding)
        """Of this process; a mixed shard's decode steps can share them."""
        self._tally = Tally()
        self._inboxes: dict[tuple[str, int], Inbox] = {}
        """Used on the data loop only, by (request, epoch)."""
        self._urgencies: dict[tuple[str, int], float] = {}
        """Of prefills under way; used on the data loop only."""

    async def join(self, request: Join) -> AsyncGenerator[Done, None]:
        key = (request.request, request.epoch)
        try:
            await self._data.run(self._open(key, request.peers))
            async with opened(self._followers.peers, request) as streams:
                for stream in streams:
                    await anext(stream)
                yield Done()
                await forever()
        finally:
            self._data.post(lambda: self._close(key))

    async def prefill(self, request: Prefill) -> AsyncIterator[Advanced | Prefilled | Deposited]:
        async def job(emit: Emit) -> None:
            parts = Parts(1 + len(self._followers.peers), emit, self._model.stage)
            turn = turn_of(self._model, request)  # no await before the followers get the request
            others = self._followers.prefill(request, parts, turn is not None)
            own = self._part(request, turn, parts)
            if turn is None:
                await gather_all(own, *others)
                return
            try:
                ends = await asyncio.gather(own, *others, return_exceptions=True)
            finally:
                self._data.post(turn.stop)
            failures = [end for end in ends if isinstance(end, Exception)]
            if failures:
                raise root_cause(ExceptionGroup("prefill", failures))

        async for item in emitted_by(job):
            yield item

    async def urge(self, request: Urge) -> Done:
        if not self._followers.peers:  # their processes compute what comes first
            self._data.post(lambda: self._urge(request))
        return Done()

    async def own_gflops(self) -> float:
        """Measure how fast this shard computes; on the data loop. Prefills go first."""
        with self._compute.prefill(lambda: -math.inf) as run:
            return await own_gflops(self._model, self._plane.device, run)

    def counters(self) -> dict[str, float]:
        """For heartbeats: requests joined now; tokens, exchange and CPU seconds so far."""
        return {
            "prefilling": float(len(self._inboxes)),
            **self._tally.counters(),
            **self._thread.busy.counters(),
            **self._compute.counters(),
        }

    def close(self) -> None:
        self._thread.close()

    async def _part(self, request: Prefill, turn: Turn | None, parts: Parts) -> None:
        control = asyncio.get_running_loop()
        spans = request.group[request.rank].spans
        tokens = sum(span.tokens for span in spans)
        timeline = Timeline(self._plane.device)
        trail = self._traces.trail(request.request, request.traceparent)
        computing = trail.begin("prefill", rank=request.rank, tokens=tokens)
        computing.later(lambda parent: layers(parent, timeline.entries))
        leaving = trail

        def advanced(tokens: int) -> None:
            control.call_soon_threadsafe(parts.take, 0, Advanced(tokens))

        def prefilled(item: Prefilled) -> None:
            nonlocal leaving
            computing.end(sent_bytes=sum(item.exchanged.sent_bytes.values()))
            leaving = trail.begin("deposit")
            self._tally.exchanged(item.exchanged)
            control.call_soon_threadsafe(parts.take, 0, item)

        progress = Progress(tokens, self._model.config.layers, self._tally, advanced)
        try:
            deposited = await self._data.run(
                self._prefill(request, turn, prefilled, progress, timeline)
            )
            leaving.end(sent_bytes=deposited.deposit_bytes)
        finally:
            for each in (computing, leaving):
                each.end()
            if turn is not None:
                self._data.post(turn.stop)
        parts.take(0, deposited)

    async def _prefill(
        self,
        request: Prefill,
        turn: Turn | None,
        prefilled: Callable[[Prefilled], None],
        progress: Progress,
        timeline: Timeline,
    ) -> Deposited:
        key = (request.request, request.epoch)
        inbox = self._inboxes.get(key)
        if inbox is None:
            why = f"request {request.request} is not joined in epoch {request.epoch}"
            raise PeerLost(self._plane.name, f"{self._plane.name}: {why}")

        def own() -> float:
            return self._urgencies[key]

        def urgency() -> float:
            return self.passes.urgency(own)

        alone = turn is None and self._model.stage is None
        self._urgencies[key] = request.urgency if alone else 0.0
        try:
            with self._compute.prefill(urgency) as compute:
                return await run_prompt(
                    self._model,
                    self._plane,
                    inbox,
                    request,
                    with_threads(compute, request.threads),
                    prefilled,
                    turn,
                    self._pages,
                    self.passes if self._model.stage is None else None,
                    progress,
                    timeline,
                    own,
                    self._grammars,
                )
        finally:
            del self._urgencies[key]

    def _urge(self, request: Urge) -> None:
        key = (request.request, request.epoch)
        if key in self._urgencies:
            self._urgencies[key] = request.urgency
            self.passes.look()
            self._compute.look()

    async def _open(self, key: tuple[str, int], peers: Sequence[Peer]) -> None:
        await self._plane.reach(peers)
        if key in self._inboxes:
            raise Invalid(f"request {key[0]} was joined in epoch {key[1]} already")
        self._inboxes[key] = self._plane.open(*key)

    def _close(self, key: tuple[str, int]) -> None:
        if inbox := self._inboxes.pop(key, None):
            inbox.close()
