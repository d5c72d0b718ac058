"""Real processes: KV is never computed twice, and nobody can tell from the answers."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator

import httpx
import pytest

from sps2.common.api import Completion
from sps2.common.client import AsyncClient, Client
from sps2.common.messages import ClusterStatus
from sps2.common.text.tokens import Tokenizer

from .conftest import Launch, Running
from .test_cluster import expected, prompt_of, released, said

PAGE = 32


@pytest.fixture(scope="module")
def cluster(launch: Launch) -> Iterator[Running]:
    """Over UCX; test_in_place.py has caches of both transports."""
    with launch("smollm2", "ucx") as running:
        yield running


def ask(client: Client, prompt: list[int], tokens: int = 8, **changes: object) -> Completion:
    options = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True, "logprobs": 0} | changes
    return client.complete(prompt, **options)  # type: ignore[arg-type]


def cached(answer: Completion) -> int:
    usage = answer.usage
    assert usage.sps2 is not None
    assert usage.sps2.cached_tokens == usage.prompt_tokens_details.cached_tokens
    return usage.sps2.cached_tokens


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("attention", ["exact", "balanced"])
def test_a_second_turn_computes_only_what_is_new(
    cluster: Running, degree: int, attention: str
) -> None:
    salt = f"turns {degree} {attention}"
    options = {"sps2": {"sp_degree": degree, "attention": attention}}
    prompt = prompt_of(150)
    with Client(cluster.bus) as client:
        first = ask(client, prompt, 40, cache_salt=salt, logit_bias={"77": 100}, **options)
        assert cached(first) == 0
        prompt = prompt + [77] * 40 + prompt_of(30)
        second = ask(client, prompt, 24, cache_salt=salt, **options)
        without = ask(client, prompt, 24, cache_salt=f"not {salt}", sps2={"sp_degree": 1})
    assert cached(second) == (150 + 39) // PAGE * PAGE
    if attention == "exact":
        assert said(second) == said(without)
    usage = second.usage.sps2
    assert usage is not None
    assert usage.deposit_bytes == (len(prompt) - cached(second)) * 3 * 2 * 3 * 8 * 4
    if degree == 1:
        assert usage.exchange_bytes == usage.predicted_exchange_bytes


def test_an_answer_that_a_stop_string_ended_is_kept_too(cluster: Running) -> None:
    tokenizer = Tokenizer(cluster.folder)
    bias = {"77": 50.0, "78": 0.0}
    prompt, stop = prompt_of(70), tokenizer.token_text(77) * 60
    found = []
    with Client(cluster.bus) as client:
        for patience_s in (0.5, 2, 8, 32):  # the owner tells the directory in its next report
            salt = f"stop, and wait for {patience_s} s"
            first = ask(client, prompt, 200, cache_salt=salt, stop=stop, logit_bias=bias)
            assert first.usage.completion_tokens <= 61
            time.sleep(patience_s)
            found.append(cached(ask(client, prompt + [77] * 58, cache_salt=salt)))
            if found[-1] == 3 * PAGE:
                return
    raise AssertionError(f"cached after each wait: {found}")


def test_the_last_token_is_always_computed(cluster: Running) -> None:
    with Client(cluster.bus) as client:
        answers = [ask(client, prompt_of(4 * PAGE), cache_salt="whole") for _ in range(2)]
    assert [cached(answer) for answer in answers] == [0, 3 * PAGE]
    assert said(answers[0]) == said(answers[1])


def test_salts_and_settings_are_kept_apart_and_scored_prompts_are_computed(
    cluster: Running,
) -> None:
    prompt = prompt_of(100)
    with Client(cluster.bus) as client:
        ask(client, prompt, cache_salt="one")
        assert cached(ask(client, prompt, cache_salt="other")) == 0
        assert cached(ask(client, prompt, cache_salt="one", sps2={"attention": "fast"})) == 0
        assert (
            cached(ask(client, prompt, cache_salt="one", sps2={"kv_transfer_dtype": "int8"})) == 0
        )
        assert cached(ask(client, prompt, cache_salt="one", echo=True)) == 0
        assert cached(ask(client, prompt, cache_salt="one")) == 3 * PAGE


async def test_requests_that_begin_alike_wait_for_the_first(cluster: Running) -> None:
    tokenizer = Tokenizer(cluster.folder)
    prompts = [prompt_of(300) + [5 + each] * 9 for each in range(8)]
    async with AsyncClient(cluster.bus) as client:
        answers = await asyncio.gather(
            *(
                client.complete(
                    prompt,
                    max_tokens=40,
                    temperature=0,
                    ignore_eos=True,
                    logprobs=0,
                    cache_salt="alike",
                )
                for prompt in prompts
            )
        )
        assert sorted(cached(answer) for answer in answers) == [0] + [9 * PAGE] * 7
        status = await released(client)
        assert status.leaked_pages == 0
        counters = [each.counters for each in status.services if "decode_keys" in each.counters]
        assert any(each["decode_keys_read"] < each["decode_keys"] for each in counters)
    for prompt, answer in zip(prompts, answers, strict=True):
        wanted = expected(cluster.folder, prompt, 40)
        assert said(answer) == [tokenizer.token_text(token) for token in wanted]


async def test_a_cancelled_first_lets_the_others_compute(cluster: Running) -> None:
    prompt = prompt_of(440)
    options = {"temperature": 0, "ignore_eos": True, "logprobs": 0, "cache_salt": "cancelled"}
    async with AsyncClient(cluster.bus) as client:
        first = asyncio.create_task(client.complete(prompt, max_tokens=60, **options))  # type: ignore[arg-type]
        second = asyncio.create_task(client.complete(prompt, max_tokens=5, **options))  # type: ignore[arg-type]
        await asyncio.sleep(0.02)
        first.cancel()
        async with asyncio.timeout(60):
            await second
        assert (await released(client)).leaked_pages == 0


async def test_a_restarted_directory_knows_the_cache_again(cluster: Running) -> None:
    prompt = prompt_of(200)
    async with AsyncClient(cluster.bus) as client:
        before = await _ask(client, prompt)
        pages = _cached_pages(await client.status())
        pid = await running_pid(client, "kvdir")
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            assert said(await _ask(client, prompt)) == said(before), "asked while it is down"
        await joined(client, "kvdir", pid)
        async with asyncio.timeout(60):
            while _cached_pages(await client.status()) < pages:
                await asyncio.sleep(0.1)
        after = await _ask(client, prompt)
        assert (cached(before), cached(after)) == (0, 6 * PAGE)
        assert said(before) == said(after)
        assert (await released(client)).leaked_pages == 0


async def test_a_prefix_that_is_lost_at_any_moment_changes_no_answer(cluster: Running) -> None:
    async with AsyncClient(cluster.bus) as client:
        wanted = said(await _ask(client, prompt_of(350)))
        for pause_s in (0.0, 0.01, 0.03):
            pid = await running_pid(client, "decode-1")
            asking = [asyncio.create_task(_ask(client, prompt_of(350))) for _ in range(3)]
            await asyncio.sleep(pause_s)
            os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(120):
                for answer in await asyncio.gather(*asking):
                    assert said(answer) == wanted
            assert said(await _ask(client, prompt_of(350))) == wanted
            await joined(client, "decode-1", pid)
        assert (await released(client)).leaked_pages == 0


async def test_what_a_lost_shard_had_is_computed_again(cluster: Running) -> None:
    prompt = prompt_of(250)
    async with AsyncClient(cluster.bus) as client:
        before = await _ask(client, prompt)
        assert before.usage.sps2 is not None
        lost = before.usage.sps2.placements[0].shard
        await _kill(lost, client)
        after = await _ask(client, prompt)
        assert cached(after) < 7 * PAGE
        assert said(before) == said(after)
        assert cached(await _ask(client, prompt)) == 7 * PAGE
        assert (await released(client)).leaked_pages == 0


@pytest.fixture(scope="module")
def small(launch: Launch) -> Iterator[Running]:
    """A cluster whose decode shards have 20 pages each."""
    with launch("llama3", "tcp", prefill=1, kv={"pool_tokens": 20 * PAGE}) as running:
        yield running


async def test_the_least_used_goes_when_room_is_needed(small: Running) -> None:
    prompts = [[5 + each] * 8 + prompt_of(192) for each in range(8)]
    async with AsyncClient(small.bus) as client:
        first = [await _ask(client, prompt) for prompt in prompts]
        assert [cached(answer) for answer in first] == [0] * 8
        assert cached(await _ask(client, prompts[-1])) == 6 * PAGE
        assert cached(await _ask(client, prompts[0])) == 0
        again = await asyncio.gather(*(_ask(client, prompt) for prompt in prompts * 3))
        assert [said(answer) for answer in again] == [said(answer) for answer in first] * 3
        leaving = [asyncio.create_task(_ask(client, prompt)) for prompt in prompts]
        await asyncio.sleep(0.1)
        for task in leaving:
            task.cancel()
        await asyncio.wait(leaving)
        status = await released(client)
    assert status.leaked_pages == 0
    assert 0 < _cached_pages(status) <= 40
    metrics = (await asyncio.to_thread(httpx.get, f"{small.url}/metrics")).text
    assert re.search(r"^sps2_prefix_cache_hits_total\{.*\} [1-9]", metrics, re.MULTILINE)


async def _ask(client: AsyncClient, prompt: list[int]) -> Completion:
    return await client.complete(
        prompt, max_tokens=8, temperature=0, ignore_eos=True, logprobs=0, cache_salt="restarts"
    )


async def _kill(service: str, client: AsyncClient) -> None:
    """End a process, and wait until the supervisor's next one has joined."""
    pid = await running_pid(client, service)
    os.kill(pid, signal.SIGKILL)
    await joined(client, service, pid)


async def joined(client: AsyncClient, service: str, pid: int) -> None:
    """Wait until a service is there that is not `pid`."""
    async with asyncio.timeout(60):
        while True:
            await asyncio.sleep(0.2)
            status = await client.status()
            if status.ready and not status.missing and pid_of(status, service) not in (0, pid):
                return


def _cached_pages(status: ClusterStatus) -> float:
    return next(
        each.counters.get("kv_cached_pages", 0)
        for each in status.services
        if each.service == "kvdir"
    )


async def running_pid(client: AsyncClient, service: str) -> int:
    """The process of a service, once it has reported: a signal to 0 would end the tests."""
    async with asyncio.timeout(60):
        while not (pid := pid_of(await client.status(), service)):
            await asyncio.sleep(0.1)
    return pid


def pid_of(status: ClusterStatus, service: str) -> int:
    return next((each.pid for each in status.services if each.service == service), 0)
