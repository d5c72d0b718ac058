"""Real processes that prefill and decode: KV of long prompts stays where it was computed.

That of short ones goes to the owner, a cached prefix stays where it is, whoever prefills the rest;
answers are the same.
"""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from sps2.common.api import Completion
from sps2.common.client import AsyncClient, Client
from sps2.common.errors import Invalid
from sps2.common.spans import Span
from sps2.common.text.tokens import Tokenizer

from .conftest import Launch, Running
from .test_cluster import (
    answered_alike_alone_and_together,
    answered_as_transformers,
    expected,
    prompt_of,
    released,
    said,
)
from .test_prefix_cache import cached, joined, running_pid

PAGE = 2
KV = {"page_tokens": PAGE}


@pytest.fixture(scope="module", params=["ucx", "tcp"])
def cluster(request: pytest.FixtureRequest, launch: Launch) -> Iterator[Running]:
    """Three shards of role `mixed` over each transport; pages so small that 7 tokens fill three."""
    with launch("smollm2", request.param, mixed=3, kv=KV) as running:
        yield running


@pytest.mark.parametrize("length", [1, 3, 7, 64, 300])
@pytest.mark.parametrize("sp_degree", [None, 3])
def test_greedy_tokens_equal_transformers(
    cluster: Running, length: int, sp_degree: int | None
) -> None:
    wanted = {"sp_degree": sp_degree} if sp_degree else {}
    salt = f"{length} {sp_degree}"
    usage = answered_as_transformers(cluster, length, 32, cache_salt=salt, sps2=wanted)
    if sp_degree:
        assert usage.sp_degree == max(1, min(sp_degree, length // 2))


@pytest.mark.parametrize("method", ["gather", "ulysses", "pass_q"])
def test_kv_stays_with_the_ranks_that_computed_it(cluster: Running, method: str) -> None:
    wanted = {"method": method, "sp_degree": 3}
    usage = answered_as_transformers(cluster, 300, 16, cache_salt=method, sps2=wanted)
    assert usage.method == method
    assert usage.deposit_bytes == 0
    assert usage.prefill_bytes == usage.exchange_bytes == usage.predicted_exchange_bytes
    assert {place.shard for place in usage.placements} == {"mixed-0", "mixed-1", "mixed-2"}
    assert usage.owner == usage.placements[-1].shard
    spans = [place.span for place in usage.placements]
    assert all(span.tokens for span in spans)
    assert [span.start for span in spans[1:]] == [span.stop for span in spans[:-1]]
    assert (spans[0].start, spans[-1].stop) == Span(0, 300)
    layers, heads, head_dim, itemsize = 3, 9, 8, 4
    assert usage.q_bytes == 2 * 15 * layers * heads * head_dim * itemsize


@pytest.mark.parametrize("method", ["ulysses", "pass_q"])
def test_the_owner_keeps_a_short_prompt_that_all_compute(cluster: Running, method: str) -> None:
    wanted = {"method": method, "sp_degree": 3}
    usage = answered_as_transformers(cluster, 60, 16, cache_salt=f"short {method}", sps2=wanted)
    assert (usage.method, usage.sp_degree) == (method, 3)
    (place,) = usage.placements
    assert (place.shard, place.span) == (usage.owner, Span(0, 60))
    layers, kv_heads, head_dim, itemsize = 3, 3, 8, 4
    assert usage.deposit_bytes == 40 * layers * 2 * kv_heads * head_dim * itemsize
    assert usage.exchange_bytes == usage.predicted_exchange_bytes > 0
    assert (usage.decode_bytes, usage.migration_pays_after) == (0, None)


@pytest.mark.parametrize("method", ["ring", "usp"])
def test_methods_that_need_two_spans_of_a_shard_are_refused(cluster: Running, method: str) -> None:
    with Client(cluster.bus) as client, pytest.raises(Invalid, match="gather, ulysses or pass_q"):
        client.complete(prompt_of(300), sps2={"method": method, "sp_degree": 2})


async def test_requests_prefill_and_decode_side_by_side(cluster: Running) -> None:
    await answered_alike_alone_and_together(cluster)


@pytest.mark.parametrize("pauses", range(12))
async def test_a_cancel_at_any_moment_frees_every_page(cluster: Running, pauses: int) -> None:
    length = (400, 60)[pauses % 2]
    async with AsyncClient(cluster.bus) as client:
        stream = client.complete_stream(
            prompt_of(length), max_tokens=100, ignore_eos=True, cache_salt=f"pauses {pauses // 4}"
        )
        reading = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.004 * pauses)
        reading.cancel()
        await asyncio.wait({reading})
        await stream.aclose()
        assert (await released(client)).leaked_pages == 0
        again = await client.complete(
            prompt_of(length), max_tokens=4, temperature=0, ignore_eos=True
        )
    assert again.usage.completion_tokens == 4


@pytest.fixture(scope="module")
def doomed(launch: Launch) -> Iterator[Running]:
    """A cluster that loses shards."""
    with launch("llama3", "tcp", mixed=3, kv=KV) as running:
        yield running


SAMPLINGS = {
    "holder": {"temperature": 0},
    "owner": {"temperature": 0.8, "seed": 7, "presence_penalty": 0.5, "repetition_penalty": 1.1},
}


async def test_streams_go_on_after_the_loss_of_a_shard(doomed: Running) -> None:
    tokenizer = Tokenizer(doomed.folder)
    lengths = (300, 60) * 2
    right = [
        [tokenizer.token_text(token) for token in expected(doomed.folder, prompt_of(each), 16)]
        for each in lengths
    ]
    async with AsyncClient(doomed.bus) as client:
        for lost, sampling in SAMPLINGS.items():
            wanted = {"max_tokens": 200, "ignore_eos": True, "logprobs": 0, **sampling}
            whole = said(await client.complete(prompt_of(300), cache_salt="calm", **wanted))
            await released(client)
            stream = client.complete_stream(prompt_of(300), cache_salt=lost, **wanted)
            tokens = said(await anext(stream))
            status = await client.status()
            (request,) = status.requests
            holder = request.placements[0].shard
            assert holder != request.owner
            waiting = [asyncio.create_task(_said_by(client, each, 16)) for each in lengths]
            gone = holder if lost == "holder" else request.owner
            (pid,) = (shard.pid for shard in status.shards if shard.id == gone)
            os.kill(pid, signal.SIGKILL)
            async for chunk in stream:
                tokens += said(chunk) if chunk.choices else []
            assert tokens == whole
            assert chunk.usage.completion_tokens == 200
            assert chunk.usage.sps2.epoch > 0
            assert await asyncio.gather(*waiting) == right
            assert (await released(client)).leaked_pages == 0
            async with asyncio.timeout(60):
                while (status := await client.status()).missing or not status.ready:
                    await asyncio.sleep(0.1)


async def _said_by(client: AsyncClient, length: int, tokens: int) -> list[str]:
    return said(
        await client.complete(
            prompt_of(length), max_tokens=tokens, temperature=0, ignore_eos=True, logprobs=0
        )
    )


async def ask(
    client: AsyncClient, prompt: list[int], salt: str, tokens: int = 8, **wanted: object
) -> Completion:
    return await client.complete(
        prompt,
        max_tokens=tokens,
        temperature=0,
        ignore_eos=True,
        logprobs=0,
        cache_salt=salt,
        sps2=wanted,  # type: ignore[arg-type]
    )


def right(running: Running, prompt: list[int], tokens: int = 8) -> list[str]:
    tokenizer = Tokenizer(running.folder)
    return [tokenizer.token_text(token) for token in expected(running.folder, prompt, tokens)]


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("degree", [1, 2, 3])
async def test_the_rest_of_a_prompt_joins_its_prefix(
    cluster: Running, degree: int, before: int
) -> None:
    method = ("gather", "ulysses", "pass_q")[(degree + before) % 3]
    salt = f"{degree} {before}"
    prompt = prompt_of(150)
    longer = prompt[:141] + prompt_of(90)
    async with AsyncClient(cluster.bus) as client:
        await ask(client, prompt, salt, sp_degree=before)
        answer = await ask(client, longer, salt, sp_degree=degree, method=method)
        assert (await released(client)).leaked_pages == 0
    assert said(answer) == right(cluster, longer)
    assert cached(answer) == 141 // PAGE * PAGE
    usage = answer.usage.sps2
    assert usage is not None
    assert (usage.sp_degree, usage.deposit_bytes) == (degree, 0)
    assert usage.exchange_bytes == usage.predicted_exchange_bytes
    assert usage.owner == usage.placements[-1].shard
    if (before, degree) == (1, 1):
        assert usage.exchange_bytes == 0, "the shard that has the prefix computes the rest"
    else:
        assert usage.exchange_bytes > 0


@pytest.fixture
def long(launch: Launch) -> Iterator[Running]:
    """A cluster for prompts over 4,096 tokens: CSA leaves shorter ones whole."""
    links = {"link_gbit": 1e6}  # so that a short prefix pays
    with launch("long", "tcp", mixed=2, sharing=links) as running:
        yield running


async def test_blocks_are_chosen_behind_a_prefix_too(long: Running) -> None:
    options = {"attention": "fast", "sp_degree": 2}
    async with AsyncClient(long.bus) as client:
        await ask(client, prompt_of(100), "csa", **options)
        answer = await ask(client, prompt_of(100) + prompt_of(4200), "csa", **options)
    usage = answer.usage.sps2
    assert usage is not None
    assert (usage.method, usage.cached_tokens) == ("csa", 96)
    assert usage.exchange_bytes_by_purpose["probe"] > 0


async def test_many_that_begin_alike_at_once(cluster: Running) -> None:
    prompts = [prompt_of(10 + 37 * (index % 4)) + [5 + index] * 9 for index in range(16)]
    async with AsyncClient(cluster.bus) as client:
        for _ in range(2):
            answers = await asyncio.gather(*(ask(client, each, "alike") for each in prompts))
            for prompt, answer in zip(prompts, answers, strict=True):
                assert said(answer) == right(cluster, prompt)
        assert (await released(client)).leaked_pages == 0
    assert all(cached(answer) for answer in answers)


@pytest.mark.parametrize("pauses", range(8))
async def test_a_cancel_behind_a_prefix_frees_every_page(cluster: Running, pauses: int) -> None:
    async with AsyncClient(cluster.bus) as client:
        await ask(client, prompt_of(300), "cancelled", sp_degree=3)
        asking = asyncio.create_task(ask(client, prompt_of(300) + prompt_of(130), "cancelled", 60))
        await asyncio.sleep(0.01 * pauses)
        asking.cancel()
        await asyncio.wait({asking})
        assert (await released(client)).leaked_pages == 0


async def test_a_prefix_that_is_lost_at_any_moment_changes_no_answer(doomed: Running) -> None:
    prompts = [prompt_of(300) + [5 + each] * 30 for each in range(3)]
    async with AsyncClient(doomed.bus) as client:
        for pause_s in (0.0, 0.02, 0.05):
            await ask(client, prompt_of(300), "alike", sp_degree=3)
            pid = await running_pid(client, "mixed-1")
            asking = [asyncio.create_task(ask(client, each, "alike")) for each in prompts]
            await asyncio.sleep(pause_s)
            os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(120):
                answers = await asyncio.gather(*asking)
            for prompt, answer in zip(prompts, answers, strict=True):
                assert said(answer) == right(doomed, prompt)
            await joined(client, "mixed-1", pid)
        assert (await released(client)).leaked_pages == 0


@pytest.fixture
def small(launch: Launch) -> Iterator[Running]:
    """A cluster with room for few prompts."""
    with launch("llama3", "tcp", mixed=2, kv={"page_tokens": 8, "pool_tokens": 320}) as running:
        yield running


async def test_room_is_made_for_who_needs_it(small: Running) -> None:
    prompts = [[5 + each] * 8 + prompt_of(180) for each in range(6)]
    async with AsyncClient(small.bus) as client:
        for _ in range(2):
            answers = await asyncio.gather(*(ask(client, each, "alike") for each in prompts * 2))
            for prompt, answer in zip(prompts * 2, answers, strict=True):
                assert said(answer) == right(small, prompt)
        assert (await released(client)).leaked_pages == 0
