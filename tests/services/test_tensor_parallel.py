"""Shards of several processes answer as one process does, at any TP of prefill and of decode."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sps2.common.messages import ExactMethod, Scheme, Selection
from sps2.common.model.collectives import Collectives
from sps2.common.model.llama import Llama
from sps2.common.model.share import Share
from sps2.common.model.weights import load
from sps2.common.spans import Span

from .losses import a_failed_prefill_ends_in_all, a_lost_process_fails_what_it_held
from .teams import PAGES, even_config, random_tensors, teams, teams_of
from .world import greedy, oracle

CONFIG = even_config()
TENSORS = random_tensors(CONFIG)
WHOLE = Llama(CONFIG, TENSORS)
PROMPT = torch.randint(96, (75,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.parametrize(
    ("shards", "prefill_tp", "decode_tp"),
    [(1, 1, 2), (1, 3, 2), (2, 2, 1), (2, 2, 2), (4, 1, 1), (4, 2, 2)],
)
async def test_greedy_answers_equal_the_oracles(
    shards: int, prefill_tp: int, decode_tp: int
) -> None:
    _, answer = await oracle(WHOLE, PROMPT, 64)
    async with teams(CONFIG, TENSORS, (shards, prefill_tp), (2, decode_tp)) as cluster:
        tokens = await cluster.run("r", PROMPT, greedy(64))
    assert [token.id for token in tokens] == answer


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme("ring"),
        Scheme("gather"),
        Scheme("gather", kv_transfer_dtype="auto", pipelined=False),
        Scheme("pass_q"),
        Scheme("ulysses", ulysses=4),
        Scheme("usp", ulysses=2),
        Scheme("csa", selection=Selection((0.0,) * 3, (0.0,) * 3)),
    ],
    ids=str,
)
async def test_methods_equal_the_oracle_between_processes_of_the_same_heads(scheme: Scheme) -> None:
    _, answer = await oracle(WHOLE, PROMPT, 8)
    async with teams(CONFIG, TENSORS, (4, 2), (2, 2)) as cluster:
        tokens = await cluster.run("r", PROMPT, greedy(8), scheme)
    assert [token.id for token in tokens] == answer


@pytest.mark.parametrize(
    ("method", "degree"),
    [("ring", 3), ("ring", 6), ("gather", 2), ("pass_q", 4), ("ulysses", 3), ("usp", 8)],
)
async def test_sixty_four_tokens_at_many_degrees(method: ExactMethod, degree: int) -> None:
    columns = {"ulysses": degree, "usp": 2}.get(method, 1)
    _, answer = await oracle(WHOLE, PROMPT, 64)
    async with teams(CONFIG, TENSORS, (degree, 2), (2, 2)) as cluster:
        tokens = await cluster.run("r", PROMPT, greedy(64), Scheme(method, columns))
    assert [token.id for token in tokens] == answer


async def test_what_csa_keeps_does_not_depend_on_how_heads_are_shared_out() -> None:
    prompt = torch.randint(96, (400,), generator=torch.Generator().manual_seed(2)).tolist()
    scheme = Scheme("csa", selection=Selection((2.0,) * 3, (2.0,) * 3, held_out=1))
    scored, blocks = [], []
    for tp in (1, 2, 3):
        async with teams(CONFIG, TENSORS, (4, tp), (1, 1)) as cluster:
            await cluster.run("r", prompt, greedy(2, prompt_logprobs=0), scheme)
            pairs = sorted(pair for reply in cluster.replies for pair in reply.prompt_logprobs)
            done = [reply.exchanged for reply in cluster.replies]
        scored.append(torch.tensor([found.logprob for _, found in pairs]))
        blocks.append((sum(each.blocks for each in done), sum(each.kept_blocks for each in done)))
    torch.testing.assert_close(scored[1:], scored[:1] * 2, rtol=0, atol=1e-4)
    assert 0 < blocks[0][1] < blocks[0][0]
    assert blocks[1:] == blocks[:1] * 2


@pytest.mark.parametrize(("prefill_tp", "decode_tp"), [(2, 2), (1, 2), (2, 1), (3, 2), (2, 6)])
async def test_cached_prefixes_are_asked_process_by_process(
    prefill_tp: int, decode_tp: int
) -> None:
    second = PROMPT[:50] + PROMPT[:30]
    _, answer = await oracle(WHOLE, second, 16)
    async with teams(CONFIG, TENSORS, (2, prefill_tp), (2, decode_tp)) as cluster:
        cluster.keeps = True
        await cluster.run("first", PROMPT, greedy(2))
        shared = [(0, Span(0, 36)), (1, Span(36, 48))]
        tokens = await cluster.run("second", second, greedy(16), shared=shared)
    assert [token.id for token in tokens] == answer


async def test_biases_are_added_once_and_an_untied_head_is_shared_out() -> None:
    changes = {"tied": True}, {"qkv_bias": True, "output_bias": True, "mlp_bias": True}
    for index, change in enumerate(changes):
        config = replace(CONFIG, **change)
        tensors = random_tensors(config, index)
        _, answer = await oracle(Llama(config, tensors), PROMPT, 8)
        async with teams(config, tensors, (1, 2), (1, 3)) as cluster:
            tokens = await cluster.run("r", PROMPT, greedy(8))
        assert [token.id for token in tokens] == answer


async def test_log_probabilities_are_those_of_the_whole_vocabulary() -> None:
    logits, _ = await oracle(WHOLE, PROMPT, 1)
    expected = logits.log_softmax(-1)
    async with teams(CONFIG, TENSORS, (2, 2), (1, 2)) as cluster:
        sampling = greedy(2, prompt_logprobs=0, logprobs=3)
        tokens = await cluster.run("r", PROMPT, sampling)
        scored = dict(pair for reply in cluster.replies for pair in reply.prompt_logprobs)
    assert sorted(scored) == list(range(1, len(PROMPT)))
    for position, found in scored.items():
        assert abs(found.logprob - float(expected[position - 1, PROMPT[position]])) < 1e-4
    assert tokens[0].logprobs is not None
    for token, value in tokens[0].logprobs.top:
        assert abs(value - float(expected[-1, token])) < 1e-4


async def test_requests_join_and_leave_at_any_step() -> None:
    prompts = [PROMPT[: 2 + 9 * start] for start in range(6)]
    lengths = [25, 3, 14, 30, 1, 8]
    answers = [(await oracle(WHOLE, *each))[1] for each in zip(prompts, lengths, strict=True)]
    async with teams(CONFIG, TENSORS, (2, 2), (2, 2)) as cluster:

        async def late(index: int) -> list[int]:
            for _ in range(40 * index):
                await asyncio.sleep(0)
            tokens = await cluster.run(f"r{index}", prompts[index], greedy(lengths[index]))
            return [token.id for token in tokens]

        assert await asyncio.gather(*map(late, range(6))) == answers
        assert {each.pool.free_pages for shard in cluster.decode for each in shard} == {PAGES}


@pytest.mark.parametrize("rank", [0, 1])
async def test_a_holder_lost_by_one_process_fails_its_requests_and_no_others(rank: int) -> None:
    async with teams(CONFIG, TENSORS, (1, 1), (2, 2), "tcp") as cluster:
        await a_lost_process_fails_what_it_held(cluster, rank, WHOLE, PROMPT)


async def test_a_prefill_that_fails_in_one_process_ends_in_all_and_the_next_one_runs() -> None:
    async with teams(CONFIG, TENSORS, (2, 2), (1, 2), "tcp") as cluster:
        await a_failed_prefill_ends_in_all(cluster, ["kv_sent", "deposit_sent"], WHOLE, PROMPT)


@pytest.mark.model
async def test_the_real_model_in_three_processes(linked: Path) -> None:
    whole = load(linked, "float32", quantize="int4")
    _, answer = await oracle(whole, PROMPT, 16)
    store = dist.HashStore()

    def part(rank: int) -> Llama:
        collectives = Collectives(Share(rank, 3), store)
        return load(linked, "float32", quantize="int4", collectives=collectives)

    with ThreadPoolExecutor(3) as threads:
        models = list(threads.map(part, range(3)))
    async with teams_of([[whole]], [models]) as cluster:
        tokens = await cluster.run("r", PROMPT, greedy(16))
    assert [token.id for token in tokens] == answer
    async with teams_of([models], [[whole]]) as cluster:
        tokens = await cluster.run("r", PROMPT, greedy(16))
    assert [token.id for token in tokens] == answer
