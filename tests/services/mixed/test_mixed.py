"""One process prefills and decodes: neither waits for the other, and pages are written by one.

Others may prefill with it what it keeps.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from sps2.common.errors import Cancelled
from sps2.common.messages import (
    Advanced,
    Decode,
    Decoded,
    Deposited,
    Evicted,
    ExactMethod,
    Follow,
    Hold,
    Join,
    Peer,
    Prefill,
    Prefilled,
    PrefillRank,
    Scheme,
    Source,
    Target,
    Token,
)
from sps2.common.model.llama import Llama
from sps2.common.model.pages import PagePool
from sps2.common.page_hashes import page_hashes
from sps2.common.spans import Span, even_split
from sps2.common.transport.plane import Plane
from sps2.services.data_loop import DataLoop
from sps2.services.decode.service import DecodeService
from sps2.services.prefill.service import PrefillService
from sps2.services.tasks import gather_all

from ..world import PAGE_TOKENS, after, greedy, oracle, tiny_config, tiny_model

GATHER = Scheme("gather")
GIVE_UP_S = 60.0
"""Only a test that fails waits so long."""


@dataclass
class Shard:
    """The two services of a shard of role `mixed`, on its own data loop."""

    plane: Plane
    pool: PagePool
    data: DataLoop
    prefill: PrefillService
    decode: DecodeService

    @property
    def peer(self) -> Peer:
        return self.plane.peer

    async def run(
        self,
        request: str,
        prompt: list[int],
        tokens: int,
        cached: int = 0,
        beside: Sequence["Shard"] = (),
        scheme: Scheme = GATHER,
    ) -> list[Token]:
        """Prefill and decode, as the scheduler has it done, after so many cached tokens.

        Args:
            beside: who computes the first parts of the prompt. All KV is kept here.
        """
        span, hashes = Span(cached, len(prompt)), page_hashes(b"", ids_of(prompt), PAGE_TOKENS)
        shared = (Span(0, cached),) if cached else ()
        group = [*beside, self]
        peers = tuple(each.peer for each in group)
        hold = Hold(request, 0, span, span.tokens + tokens, hashes, shared, sources=peers)
        async with AsyncExitStack() as stack:
            holding = await stack.enter_async_context(aclosing(self.decode.hold(hold)))
            await anext(holding)
            for each in group:
                joining = each.prefill.join(Join(request, 0, peers))
                await anext(await stack.enter_async_context(aclosing(joining)))
            parts = [self.part(hold, prompt, rank, beside, scheme) for rank in range(len(group))]
            replies = await gather_all(
                *(collected(each, part) for each, part in zip(group, parts, strict=True))
            )
            for part, (prefilled, deposited) in zip(parts, replies, strict=True):
                (own,) = part.group[part.rank].spans
                is_kept_here = part.rank == len(beside)
                sent = 0 if is_kept_here else own.tokens * tiny_config().kv_bytes(4)
                assert deposited == Deposited(sent)
                assert bool(beside) or not prefilled.exchanged.sent_bytes
                assert (prefilled.token is not None) == is_kept_here
            first = replies[-1][0].token
            assert first is not None
            await anext(holding)
            ids = ids_of(prompt)
            following = asyncio.create_task(self.follow(request))
            decode = Decode(request, 0, ids, first, (), greedy(tokens))
            (done,) = [item async for item in self.decode.decode(decode)]
            assert done == Decoded(tokens, "length", 0, 0)
            return [first, *await following]

    def part(
        self,
        hold: Hold,
        prompt: list[int],
        rank: int = 0,
        beside: Sequence["Shard"] = (),
        scheme: Scheme = GATHER,
    ) -> Prefill:
        peers, group = (self.peer,), [*beside, self]
        spans = [after(own, hold.span.start) for own in even_split(hold.span.tokens, len(group))]
        return Prefill(
            hold.request,
            0,
            ids_of(prompt),
            tuple(
                PrefillRank((each.peer,), (own,)) for each, own in zip(group, spans, strict=True)
            ),
            rank,
            (Target(peers, hold.span),),
            greedy(1000),
            scheme,
            prefix=(Source(peers, hold.shared),) if hold.shared else (),
        )

    async def follow(self, request: str) -> list[Token]:
        return [token async for token in self.decode.follow(Follow(request, 0))]


async def collected(shard: Shard, part: Prefill) -> tuple[Prefilled, Deposited]:
    *advanced, prefilled, deposited = [item async for item in shard.prefill.prefill(part)]
    assert all(isinstance(item, Advanced) for item in advanced)
    assert isinstance(prefilled, Prefilled)
    assert isinstance(deposited, Deposited)
    return prefilled, deposited


def prompt_of(length: int) -> list[int]:
    return [(5 * index + length) % 97 for index in range(length)]


def ids_of(prompt: list[int]) -> bytes:
    return torch.tensor(prompt, dtype=torch.int32).numpy().tobytes()


@asynccontextmanager
async def shard(model: Llama, pages: int = 256, index: int = 0) -> AsyncIterator[Shard]:
    data = DataLoop()
    data.start()
    plane = Plane(f"mixed-{index}/t", "tcp")
    await data.run(plane.start())
    pool = PagePool(model.config, pages, PAGE_TOKENS, model.dtype)
    decode = DecodeService(model, plane, pool, data)
    await decode.start()
    prefill = PrefillService(model, plane, data, pages=decode)
    try:
        async with asyncio.timeout(GIVE_UP_S):
            yield Shard(plane, pool, data, prefill, decode)
    finally:
        prefill.close()
        await decode.close()
        await data.run(plane.close())
        await data.close()


def before_each_prefill_layer(model: Llama, wait: Callable[[], object]) -> None:
    """Have `wait()` called, on the compute thread, in every layer of a prefill."""
    advance = model._advance

    def waiting(*arguments: Any) -> Any:
        if threading.current_thread().name.startswith("compute"):
            wait()
        return advance(*arguments)

    model._advance = waiting  # type: ignore[method-assign, assignment]
    model._native = None  # short prompts would do without it


@pytest.mark.parametrize("length", [1, 3, 7, 300])
async def test_answers_equal_the_oracles_and_pages_come_back(length: int) -> None:
    model = tiny_model()
    _, answer = await oracle(model, prompt_of(length), 20)
    async with shard(model) as own:
        tokens = await own.run("r", prompt_of(length), 20)
        assert [token.id for token in tokens] == answer
        await own.decode.reports.evict(Evicted(own.decode.reports.cached()))
        assert await own.data.run(free_pages(own)) == 256


@pytest.mark.parametrize("window", [None, 20])
async def test_a_prefix_in_the_same_process_is_attended_to_there(window: int | None) -> None:
    model = tiny_model(window)
    async with shard(model) as own:
        await own.run("first", prompt_of(90), 2)
        named = len(own.decode.reports.cached())
        for request, (cached, rest) in {"a": (88, 2), "b": (40, 60), "c": (4, 3)}.items():
            prompt = prompt_of(90)[:cached] + [7] * rest
            _, answer = await oracle(model, prompt, 12)
            tokens = await own.run(request, prompt, 12, cached)
            assert [token.id for token in tokens] == answer
        await own.decode.reports.evict(Evicted(own.decode.reports.cached()))
        assert await own.data.run(free_pages(own)) == 256
        assert named == 22


@pytest.mark.parametrize("method", ["gather", "pass_q"])
async def test_what_others_compute_lies_in_its_pages_too(method: ExactMethod) -> None:
    """So that it answers alone, also to prompts that go on."""
    model, scheme = tiny_model(), Scheme(method)
    async with shard(model) as own, shard(tiny_model(), index=1) as other:
        for cached, length in ((0, 4), (0, 90), (80, 120), (116, 118)):
            prompt = prompt_of(90)[:length] + [7] * (length - 90)
            _, answer = await oracle(model, prompt, 20)
            tokens = await own.run(f"{cached} {length}", prompt, 20, cached, [other], scheme)
            assert [token.id for token in tokens] == answer
        assert other.decode.reports.cached() == ()
        await own.decode.reports.evict(Evicted(own.decode.reports.cached()))
        assert await own.data.run(free_pages(own)) == 256


async def free_pages(own: Shard) -> int:
    return own.pool.free_pages


async def test_tokens_come_during_every_layer_of_a_prefill() -> None:
    model = tiny_model()
    _, short = await oracle(model, prompt_of(5), 300)
    _, long = await oracle(model, prompt_of(200), 5)
    came = threading.Semaphore(0)
    async with shard(model) as own:
        decoding = asyncio.create_task(own.run("short", prompt_of(5), 300))
        emit = own.decode._batch._emit

        def emitting(tokens: Any) -> None:
            came.release()
            emit(tokens)

        own.decode._batch._emit = emitting
        while not own.decode._batch._running:
            await asyncio.sleep(0.001)

        def wait_for_three_tokens() -> None:
            for _ in range(3):
                assert came.acquire(timeout=GIVE_UP_S / 3)

        before_each_prefill_layer(model, wait_for_three_tokens)
        tokens = await own.run("long", prompt_of(200), 5)
        assert not decoding.done()
        assert [token.id for token in tokens] == long
        assert [token.id for token in await decoding] == short


async def test_a_prefill_that_goes_on_a_moment_after_its_end_touches_no_pages() -> None:
    model = tiny_model()
    reached, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        reached.set()
        assert go_on.wait(GIVE_UP_S)

    async with shard(model, pages=2) as own:
        before_each_prefill_layer(model, pause)
        hold = Hold("ended", 0, Span(0, 6), 8)
        holding, joining = own.decode.hold(hold), own.prefill.join(Join("ended", 0))
        await anext(holding)
        await anext(joining)
        part = asyncio.ensure_future(anext(own.prefill.prefill(own.part(hold, prompt_of(6)))))
        assert await asyncio.to_thread(reached.wait, GIVE_UP_S)
        await holding.aclose()
        taken = own.pool.take(2)
        for layer in range(model.config.layers):
            for tensor in own.pool.layer(layer):
                tensor.fill_(7.0)
        go_on.set()
        with pytest.raises(Cancelled):
            await part
        for layer in range(model.config.layers):
            assert all(bool((tensor == 7.0).all()) for tensor in own.pool.layer(layer))
        await joining.aclose()
        own.pool.give_back(taken)
