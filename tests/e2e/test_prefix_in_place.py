"""Real shards that do both: a cached prefix stays where it is, whoever prefills the rest."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from sps2.common.api import Completion
from sps2.common.client import AsyncClient
from sps2.common.tokens import Tokenizer

from .conftest import Launch, Running
from .test_cluster import expected, prompt_of, released, said
from .test_prefix_cache import cached, joined, pid_of

PAGE = 8
KV = {"page_tokens": PAGE}


@pytest.fixture(scope="module", params=["ucx", "tcp"])
def cluster(request: pytest.FixtureRequest, launch: Launch) -> Iterator[Running]:
    """Three shards of role `any` over each transport."""
    with launch("smollm2", request.param, any=3, kv=KV) as running:
        yield running


async def ask(
    client: AsyncClient, prompt: list[int], salt: str, tokens: int = 8, **wish: object
) -> Completion:
    return await client.complete(
        prompt,
        max_tokens=tokens,
        temperature=0,
        ignore_eos=True,
        logprobs=0,
        cache_salt=salt,
        sps2=wish,  # type: ignore[arg-type]
    )


def right(running: Running, prompt: list[int], tokens: int = 8) -> list[str]:
    tokenizer = Tokenizer(running.folder)
    return [tokenizer.token_text(token) for token in expected(running.folder, prompt, tokens)]


@pytest.mark.parametrize("method", ["gather", "ulysses", "pass_q"])
@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("degree", [1, 2, 3])
async def test_the_rest_of_a_prompt_joins_its_prefix(
    cluster: Running, degree: int, before: int, method: str
) -> None:
    salt = f"{degree} {before} {method}"
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
    with launch("long", "tcp", any=2, kv=KV) as running:
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
async def test_a_cancel_at_any_moment_frees_every_page(cluster: Running, pauses: int) -> None:
    async with AsyncClient(cluster.bus) as client:
        await ask(client, prompt_of(300), "cancelled", sp_degree=3)
        asking = asyncio.create_task(ask(client, prompt_of(300) + prompt_of(130), "cancelled", 60))
        await asyncio.sleep(0.01 * pauses)
        asking.cancel()
        await asyncio.wait({asking})
        assert (await released(client)).leaked_pages == 0


@pytest.fixture
def small(launch: Launch) -> Iterator[Running]:
    """A cluster with room for few prompts."""
    with launch("llama3", "tcp", any=2, kv=KV | {"pool_tokens": 40 * PAGE}) as running:
        yield running


async def test_room_is_made_for_who_needs_it(small: Running) -> None:
    prompts = [[5 + each] * 8 + prompt_of(180) for each in range(6)]
    async with AsyncClient(small.bus) as client:
        for _ in range(2):
            answers = await asyncio.gather(*(ask(client, each, "alike") for each in prompts * 2))
            for prompt, answer in zip(prompts * 2, answers, strict=True):
                assert said(answer) == right(small, prompt)
        assert (await released(client)).leaked_pages == 0


@pytest.fixture
def doomed(launch: Launch) -> Iterator[Running]:
    """A cluster that loses shards."""
    with launch("llama3", "tcp", any=3, kv=KV) as running:
        yield running


async def test_a_prefix_that_is_lost_at_any_moment_changes_no_answer(doomed: Running) -> None:
    prompts = [prompt_of(300) + [5 + each] * 30 for each in range(3)]
    async with AsyncClient(doomed.bus) as client:
        for pause_s in (0.0, 0.02, 0.05):
            await ask(client, prompt_of(300), "alike", sp_degree=3)
            pid = pid_of(await client.status(), "any-1")
            asking = [asyncio.create_task(ask(client, each, "alike")) for each in prompts]
            await asyncio.sleep(pause_s)
            os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(120):
                answers = await asyncio.gather(*asking)
            for prompt, answer in zip(prompts, answers, strict=True):
                assert said(answer) == right(doomed, prompt)
            await joined(client, "any-1", pid)
        assert (await released(client)).leaked_pages == 0
