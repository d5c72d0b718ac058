"""Mixed shards change their duties while requests run; answers stay as they were."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sps2.common.client import AsyncClient

from .conftest import Launch, Running

SPSCTL = (sys.executable, "-m", "sps2.cli.main")


def spsctl(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*SPSCTL, *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def cluster(launch: Launch) -> Iterator[Running]:
    scheduler = {
        "prefill_span_tokens": 16,
        "decode_span_tokens": 64,
        "decode_only": ("mixed-1",),
    }
    with launch("smollm2", "tcp", mixed=2, scheduler=scheduler) as running:
        yield running


async def answer(client: AsyncClient, number: int, salt: str) -> tuple[list[str], int, set[str]]:
    prompt = [3 + (7 * index + 11 * number) % 380 for index in range(20 + 37 * number)]
    found = await client.complete(
        prompt, max_tokens=40, temperature=0, ignore_eos=True, logprobs=0, cache_salt=salt
    )
    logprobs, used = found.choices[0].logprobs, found.usage.sps2
    assert logprobs is not None
    assert used is not None
    return logprobs.tokens, used.sp_degree, {each.shard for each in used.placements}


def duties() -> dict[str, str]:
    shards = json.loads(spsctl("status", "--json").stdout)["shards"]
    return {shard["id"]: shard["duty"] for shard in shards}


async def test_duties_change_under_load(cluster: Running) -> None:
    async with AsyncClient(cluster.bus) as client:
        assert duties() == {"mixed-0": "mixed", "mixed-1": "decode"}
        at_first = [await answer(client, number, "first") for number in range(5)]
        assert {degree for _, degree, _ in at_first} == {1}

        done = await asyncio.to_thread(spsctl, "duty", "mixed-1", "mixed")
        assert done.stdout == "mixed-1: mixed\n", done.stderr
        both = [await answer(client, number, "both") for number in range(5)]
        assert {degree for _, degree, _ in both} >= {2}
        assert [tokens for tokens, _, _ in both] == [tokens for tokens, _, _ in at_first]

        assert not spsctl("duty", "mixed-0", "prefill").returncode
        apart = [await answer(client, number, "apart") for number in range(5)]
        assert {shard for _, _, shards in apart for shard in shards} == {"mixed-1"}
        assert [tokens for tokens, _, _ in apart] == [tokens for tokens, _, _ in both]

        asking = [asyncio.create_task(answer(client, n % 5, f"load {n}")) for n in range(15)]
        for shard, duty in (
            ("mixed-1", "decode"),
            ("mixed-0", "mixed"),
            ("mixed-1", "prefill"),
            ("mixed-1", "mixed"),
        ):
            done = await asyncio.to_thread(spsctl, "duty", shard, duty)
            assert not done.returncode, done.stderr
        for number, task in enumerate(asking):
            assert (await task)[0] == at_first[number % 5][0]


@pytest.mark.parametrize(
    ("shard", "duty", "why"),
    [
        ("mixed-7", "decode", "there is no shard mixed-7; there are mixed-0, mixed-1"),
        ("mixed-0", "nothing", "is not one of"),
    ],
)
def test_what_is_not_possible(cluster: Running, shard: str, duty: str, why: str) -> None:
    done = spsctl("duty", shard, duty)
    assert done.returncode
    assert why in " ".join(done.stderr.split())


def test_somebody_must_prefill(cluster: Running) -> None:
    assert not spsctl("duty", "mixed-0", "decode").returncode
    done = spsctl("duty", "mixed-1", "decode")
    assert done.returncode == 1
    assert "with mixed-1 as decode, no shard would prefill" in done.stderr
    assert not spsctl("duty", "mixed-0", "mixed").returncode
