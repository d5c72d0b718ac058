"""Answers that grow: many at once on pools that hold few of them, each as if it were alone."""

import asyncio
from collections.abc import Iterator
from random import Random

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sps2.common.client import AsyncClient

from ..waiting import until
from .conftest import Launch, Running

POOL = 240


@pytest.fixture(scope="module", params=[{"prefill": 2, "decode": 2}, {"mixed": 2}], ids=str)
def small(request: pytest.FixtureRequest, launch: Launch) -> Iterator[Running]:
    kv = {"pool_tokens": POOL, "page_tokens": 16, "growth_tokens": 16}
    with launch("smollm2", "tcp", kv=kv, **request.param) as running:
        yield running


def preemptions(cluster: Running) -> float:
    text = httpx.get(f"{cluster.url}/metrics").text
    families = text_string_to_metric_families(text)
    return sum(
        each.value
        for family in families
        for each in family.samples
        if each.name == "sps2_preemptions_total"
    )


async def test_more_than_fits_at_once(small: Running) -> None:
    draw = Random(1)
    prompts = [[draw.randrange(3, 380) for _ in range(draw.randrange(8, 90))] for _ in range(14)]

    async def answer(prompt: list[int], salt: str) -> list[str]:
        answer = await client.complete(
            prompt,
            max_tokens=draw.choice([70, 120]) if salt == "together" else 120,
            temperature=0,
            ignore_eos=True,
            logprobs=0,
            cache_salt=salt,
        )
        assert answer.usage.completion_tokens in (70, 120)
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        return logprobs.tokens

    async with AsyncClient(small.bus) as client:
        alone = [await answer(prompt, "alone") for prompt in prompts]
        before = preemptions(small)
        together = await asyncio.gather(*(answer(prompt, "together") for prompt in prompts))
        for one, other in zip(alone, together, strict=True):
            assert one[: len(other)] == other
        await until(lambda: preemptions(small) > before)
