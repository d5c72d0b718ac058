"""Real processes and sockets: answers equal transformers', KV is spread, everything is released."""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import transformers

from sps2.common.api import Completion
from sps2.common.api.usage import Sps2Usage
from sps2.common.client import AsyncClient, Client
from sps2.common.errors import Invalid
from sps2.common.messages import ClusterStatus
from sps2.common.text.tokens import Tokenizer

from .conftest import Launch, Running

LENGTHS = [1, 2, 5, 17, 64, 150, 333, 440]


def prompt_of(length: int) -> list[int]:
    return [3 + (7 * index + length) % 380 for index in range(length)]


def expected(folder: Path, prompt: list[int], tokens: int) -> list[int]:
    """What transformers goes on with, greedily."""
    return list(_expected(folder, tuple(prompt), tokens))


@cache
@torch.inference_mode()
def _expected(folder: Path, prompt: tuple[int, ...], tokens: int) -> list[int]:
    answer = _reference(folder).generate(
        torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    picked: list[int] = answer[0, len(prompt) :].tolist()
    return picked


@cache
def _reference(folder: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return model


def said(answer: Completion) -> list[str]:
    assert answer.choices[0].logprobs is not None
    return answer.choices[0].logprobs.tokens


async def released(client: AsyncClient) -> ClusterStatus:
    """The status once nothing is held any more."""
    async with asyncio.timeout(60):
        while True:
            status = await client.status()
            if not status.leases and all(each.pages_free == each.pages for each in status.shards):
                return status
            await asyncio.sleep(0.05)


def answered_as_transformers(cluster: Running, length: int, tokens: int, **more: Any) -> Sps2Usage:
    """Ask greedily for exactly so many tokens, and compare; returns what the request took."""
    tokenizer = Tokenizer(cluster.folder)
    wanted = expected(cluster.folder, prompt_of(length), tokens)
    with Client(cluster.bus) as client:
        answer = client.complete(
            prompt_of(length),
            max_tokens=tokens,
            temperature=0,
            ignore_eos=True,
            logprobs=0,
            **more,
        )
    assert said(answer) == [tokenizer.token_text(token) for token in wanted]
    assert answer.usage.sps2 is not None
    return answer.usage.sps2


async def answered_alike_alone_and_together(cluster: Running, requests: int = 32) -> None:
    """Long and short prompts in any order, by several methods: short ones preempt long ones."""
    numbers = range(requests)

    async with AsyncClient(cluster.bus) as client:

        async def ask(number: int, salt: str) -> Completion:
            length = 3 + 13 * (7 * number % 32)
            method = (None, "gather", "ulysses", "pass_q")[number % 4] if length > 64 else None
            return await client.complete(
                prompt_of(length),
                max_tokens=8 + 5 * (number % 3),
                temperature=0,
                ignore_eos=True,
                logprobs=0,
                cache_salt=f"{salt} {number}",
                sps2={"method": method, "sp_degree": 2} if method else {},
            )

        alone = [said(await ask(number, "alone")) for number in numbers]
        together = await asyncio.gather(*(ask(number, "together") for number in numbers))
        assert [said(answer) for answer in together] == alone
        assert (await released(client)).leaked_pages == 0


@pytest.mark.parametrize("length", LENGTHS)
def test_greedy_tokens_equal_transformers(cluster: Running, length: int) -> None:
    answered_as_transformers(cluster, length, 32)


@pytest.mark.parametrize("method", ["ring", "gather", "ulysses", "pass_q"])
def test_every_exact_method_says_the_same(cluster: Running, method: str) -> None:
    options = {"method": method, "sp_degree": 2}
    usage = answered_as_transformers(cluster, 300, 64, cache_salt=method, sps2=options)
    assert (usage.method, usage.attention) == (method, "exact")
    assert usage.exchange_bytes == usage.predicted_exchange_bytes


def test_what_heads_and_shards_cannot_do_is_refused(cluster: Running) -> None:
    with Client(cluster.bus) as client:
        with pytest.raises(Invalid, match="4, 6 or 8"):
            client.complete(prompt_of(300), sps2={"method": "usp", "sp_degree": 2})
        with pytest.raises(Invalid, match="leave out method"):
            client.complete("x", sps2={"method": "ring", "attention": "fast"})


def test_kv_is_spread_and_bytes_are_those_of_the_formulas(cluster: Running) -> None:
    with Client(cluster.bus) as client:
        answer = client.complete(
            prompt_of(300),
            max_tokens=11,
            temperature=0,
            ignore_eos=True,
            cache_salt="spread",
            sps2={"method": "ring"},
        )
    usage = answer.usage.sps2
    assert usage is not None
    layers, heads, kv_heads, head_dim, itemsize = 3, 9, 3, 8, 4
    assert usage.sp_degree == 2
    assert {place.shard for place in usage.placements} == {"decode-0", "decode-1"}
    assert sum(place.span.tokens for place in usage.placements) == 300
    assert usage.deposit_bytes == 300 * layers * 2 * kv_heads * head_dim * itemsize
    assert usage.exchange_bytes == usage.deposit_bytes == usage.predicted_exchange_bytes
    (elsewhere,) = (p.span.tokens for p in usage.placements if p.shard != usage.owner)
    token = heads * (2 * head_dim * itemsize + 4)
    assert usage.migration_pays_after == -(-elsewhere * 2 * kv_heads * head_dim * itemsize // token)
    steps = 10
    assert usage.q_bytes == steps * layers * heads * head_dim * itemsize
    assert usage.state_bytes == steps * layers * heads * (head_dim * itemsize + 4)


async def test_concurrent_requests_equal_their_single_runs(cluster: Running) -> None:
    await answered_alike_alone_and_together(cluster)


@pytest.mark.parametrize("tokens_first", [0, 3])
async def test_a_client_that_leaves_frees_every_page(cluster: Running, tokens_first: int) -> None:
    async with AsyncClient(cluster.bus) as client:
        stream = client.complete_stream(prompt_of(400), max_tokens=100, ignore_eos=True)
        reading = asyncio.create_task(_read(stream, tokens_first))
        if not tokens_first:
            await asyncio.sleep(0.01)
            reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        await stream.aclose()
        assert (await released(client)).leaked_pages == 0


async def _read(stream, chunks: int) -> None:  # type: ignore[no-untyped-def]
    async for _ in stream:
        chunks -= 1
        if chunks == 0:
            return


def test_the_official_client_lists_completes_chats_and_streams(cluster: Running) -> None:
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        (model,) = client.models.list().data
        completion = client.completions.create(
            model=model.id, prompt="A word", max_tokens=5, extra_body={"ignore_eos": True}
        )
        assert completion.usage is not None
        assert completion.usage.total_tokens == completion.usage.prompt_tokens + 5
        messages: list[Any] = [{"role": "user", "content": "Hello"}]
        chat = client.chat.completions.create(
            model=model.id, messages=messages, max_tokens=6, temperature=0, seed=1
        )
        streamed = client.chat.completions.create(
            model=model.id,
            messages=messages,
            max_tokens=6,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(streamed)
        text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
        assert text == chat.choices[0].message.content
        assert chunks[-1].usage is not None
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            client.completions.create(model=model.id, prompt="x", max_tokens=-1)
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="another", prompt="x")
        with pytest.raises(openai.BadRequestError, match="512"):
            client.completions.create(model=model.id, prompt=prompt_of(600))


def test_curl_shows_tokens_as_they_come(cluster: Running) -> None:
    body = '{"prompt": "Once", "max_tokens": 6, "stream": true, "ignore_eos": true}'
    output = subprocess.run(
        ["curl", "-sN", f"{cluster.url}/v1/completions", "-d", body],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    events = [line for line in output.splitlines() if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    assert len(events) >= 3


def test_bad_requests_are_told_apart_and_change_nothing(cluster: Running) -> None:
    with Client(cluster.bus) as client:
        with pytest.raises(Invalid, match="sp_degree 3"):
            client.complete("x", sps2={"sp_degree": 3})
        with pytest.raises(Invalid):
            client.complete("")
        with pytest.raises(Invalid, match="n"):
            client.complete("x", n=1000)
        status = client.status()
    assert status.ready
    assert {service.state for service in status.services} == {"ready"}


@pytest.mark.parametrize(
    ("family", "shards"),
    [
        ("mistral", {}),
        ("qwen2", {"mixed": 2}),
        ("yarn", {"mixed": 2}),
    ],
)
def test_every_family_is_served(launch: Launch, family: str, shards: dict[str, int]) -> None:
    """By two shards that do both where no window needs more; other tests have llama3 and qwen3."""
    with launch(family, "tcp", **shards) as cluster:
        assert answered_as_transformers(cluster, 200, 16).sp_degree == 2


@pytest.fixture
def small(launch: Launch) -> Iterator[Running]:
    """Pools that hold fewer tokens than the model's context."""
    kv = {"pool_tokens": 192, "page_tokens": 16, "growth_tokens": 16}
    with launch("smollm2", "tcp", kv=kv) as running:
        yield running


async def test_chats_without_a_limit_on_small_pools_all_complete(small: Running) -> None:
    """Half of the answers have room at once."""
    async with AsyncClient(small.bus) as client:
        (model,) = await client.models()
        assert model.max_model_len > 192
        chats = await asyncio.gather(
            *(client.chat(f"Hello {number}", ignore_eos=True) for number in range(20))
        )
        assert all(chat.usage.completion_tokens > 0 for chat in chats)
        assert {chat.choices[0].finish_reason for chat in chats} == {"length"}
        assert (await released(client)).leaked_pages == 0
