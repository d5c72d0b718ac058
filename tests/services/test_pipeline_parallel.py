"""Shards whose processes are stages of a pipeline answer as one process does."""

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from sps2.common.messages import Scheme, Selection
from sps2.common.model.config import read
from sps2.common.model.llama import Llama
from sps2.common.model.share import Quantize
from sps2.common.model.stage import stage_of
from sps2.common.model.weights import load
from sps2.common.spans import Span

from .losses import a_failed_prefill_ends_in_all, a_lost_process_fails_what_it_held
from .teams import PAGES, in_stages, random_tensors, teams_of
from .world import greedy, oracle, tiny_config

CONFIG = replace(tiny_config(), layers=5, windows=(None, 40, None, 24, None))
TENSORS = random_tensors(CONFIG)
WHOLE = Llama(CONFIG, TENSORS)
PROMPT = torch.randint(90, (75,), generator=torch.Generator().manual_seed(1)).tolist()

staged = partial(in_stages, CONFIG, TENSORS)


@pytest.mark.parametrize(("shards", "holders", "pp"), [(1, 1, 2), (2, 2, 2), (3, 2, 3), (1, 2, 5)])
async def test_greedy_answers_equal_the_oracles(shards: int, holders: int, pp: int) -> None:
    _, answer = await oracle(WHOLE, PROMPT, 48)
    shards_of = [staged(pp) for _ in range(shards)], [staged(pp) for _ in range(holders)]
    async with teams_of(*shards_of) as cluster:
        tokens = await cluster.run("r", PROMPT, greedy(48))
    assert [token.id for token in tokens] == answer


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme("ring"),
        Scheme("gather"),
        Scheme("pass_q"),
        Scheme("usp", ulysses=2),
        Scheme("csa", selection=Selection((0.0,) * 5, (0.0,) * 5)),
    ],
    ids=str,
)
async def test_methods_equal_the_oracle_between_processes_of_the_same_layers(
    scheme: Scheme,
) -> None:
    _, answer = await oracle(WHOLE, PROMPT, 8)
    async with teams_of([staged(2) for _ in range(4)], [staged(2) for _ in range(2)]) as cluster:
        tokens = await cluster.run("r", PROMPT, greedy(8), scheme)
    assert [token.id for token in tokens] == answer


async def test_csa_keeps_what_one_process_would_keep() -> None:
    prompt = torch.randint(90, (400,), generator=torch.Generator().manual_seed(2)).tolist()
    layers = tuple(1.5 + index / 4 for index in range(5))
    scheme = Scheme("csa", selection=Selection(layers, layers, held_out=1))
    blocks = []
    for pp in (1, 2, 3):
        async with teams_of([staged(pp) for _ in range(4)], [staged(pp)]) as cluster:
            await cluster.run("r", prompt, greedy(2), scheme)
            done = [reply.exchanged for reply in cluster.replies]
        blocks.append((sum(each.blocks for each in done), sum(each.kept_blocks for each in done)))
    assert 0 < blocks[0][1] < blocks[0][0]
    assert blocks[1:] == blocks[:1] * 2


async def test_cached_prefixes_are_asked_stage_by_stage() -> None:
    second = PROMPT[:50] + PROMPT[:30]
    _, answer = await oracle(WHOLE, second, 16)
    async with teams_of([staged(2), staged(2)], [staged(2), staged(2)]) as cluster:
        cluster.keeps = True
        await cluster.run("first", PROMPT, greedy(2))
        shared = [(0, Span(0, 36)), (1, Span(36, 48))]
        tokens = await cluster.run("second", second, greedy(16), shared=shared)
    assert [token.id for token in tokens] == answer


async def test_log_probabilities_of_prompt_and_answer() -> None:
    logits, _ = await oracle(WHOLE, PROMPT, 1)
    expected = logits.log_softmax(-1)
    async with teams_of([staged(2), staged(2)], [staged(2)]) as cluster:
        tokens = await cluster.run("r", PROMPT, greedy(2, prompt_logprobs=0, logprobs=3))
        scored = dict(pair for reply in cluster.replies for pair in reply.prompt_logprobs)
    assert sorted(scored) == list(range(1, len(PROMPT)))
    for position, found in scored.items():
        assert abs(found.logprob - float(expected[position - 1, PROMPT[position]])) < 1e-4
    assert tokens[0].logprobs is not None


async def test_requests_join_and_leave_at_any_step() -> None:
    prompts = [PROMPT[: 2 + 9 * start] for start in range(6)]
    lengths = [25, 3, 14, 30, 1, 8]
    answers = [(await oracle(WHOLE, *each))[1] for each in zip(prompts, lengths, strict=True)]
    async with teams_of([staged(2), staged(2)], [staged(2), staged(2)]) as cluster:

        async def late(index: int) -> list[int]:
            for _ in range(40 * index):
                await asyncio.sleep(0)
            tokens = await cluster.run(f"r{index}", prompts[index], greedy(lengths[index]))
            return [token.id for token in tokens]

        assert await asyncio.gather(*map(late, range(6))) == answers
        assert {each.pool.free_pages for shard in cluster.decode for each in shard} == {PAGES}


@pytest.mark.parametrize("stage", [0, 1, 2])
async def test_a_holder_lost_by_one_stage_fails_its_requests_and_no_others(stage: int) -> None:
    async with teams_of([staged(3)], [staged(3), staged(3)], "tcp") as cluster:
        await a_lost_process_fails_what_it_held(cluster, stage, WHOLE, PROMPT)


async def test_a_prefill_that_fails_in_one_stage_ends_in_all_and_the_next_one_runs() -> None:
    async with teams_of([staged(2), staged(2)], [staged(2)], "tcp") as cluster:
        await a_failed_prefill_ends_in_all(cluster, ["hidden_sent"], WHOLE, PROMPT)


@pytest.mark.model
@pytest.mark.parametrize(("dtype", "quantize"), [("auto", "none"), ("float32", "int4")])
async def test_the_real_model_in_three_stages(linked: Path, dtype: str, quantize: Quantize) -> None:
    whole = load(linked, dtype, quantize=quantize)
    config = read(linked)
    stages = [stage_of(config, rank, 3) for rank in range(3)]
    models = [load(linked, dtype, quantize=quantize, stage=stage) for stage in stages]
    assert sum(model.config.layers for model in models) == config.layers
    _, answer = await oracle(whole, PROMPT, 16)
    async with teams_of([models], [models]) as cluster:
        tokens = await cluster.run("r", PROMPT, greedy(16))
    assert [token.id for token in tokens] == answer
