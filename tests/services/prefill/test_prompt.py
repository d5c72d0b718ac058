"""SP prefill equals single-shard attention, at any length and degree; KV lands as planned."""

import pytest
import torch

from sps2.common.errors import PeerLost

from ..world import PAGE_TOKENS, greedy, oracle, tiny_model, world


@pytest.mark.parametrize("length", [1, 2, 5, 8, 23, 64, 131])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
async def test_first_token_and_prompt_logprobs_equal_the_oracles(ranks: int, length: int) -> None:
    model = tiny_model()
    prompt = torch.randint(97, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    logits, (first,) = await oracle(model, prompt, 1)
    expected = logits.log_softmax(-1)
    async with world(model, ranks, 1) as shards:
        replies, tokens = await shards.run("r", prompt, greedy(1, prompt_logprobs=2, logprobs=5))
    assert [token.id for token in tokens] == [first]
    scored = dict(pair for reply in replies for pair in reply.prefilled.prompt_logprobs)
    assert sorted(scored) == list(range(1, length))
    for position, found in scored.items():
        assert abs(found.logprob - float(expected[position - 1, prompt[position]])) < 1e-4
    assert tokens[0].logprobs is not None
    for token, value in tokens[0].logprobs.top:
        assert abs(value - float(expected[-1, token])) < 1e-4


@pytest.mark.parametrize("window", [1, 5, 40])
async def test_sliding_windows_reach_across_shards(window: int) -> None:
    model = tiny_model(window)
    prompt = list(range(90))
    _, answer = await oracle(model, prompt, 12)
    async with world(model, 3, 3) as shards:
        _, tokens = await shards.run("r", prompt, greedy(12))
    assert [token.id for token in tokens] == answer


async def test_bytes_are_those_of_the_formulas() -> None:
    model, prompt = tiny_model(), [7] * 64
    config = model.config
    kv_token = 2 * config.kv_heads * config.head_dim * 4 * config.layers
    async with world(model, 4, 2) as shards:
        replies, _ = await shards.run("r", prompt, greedy(1))
    assert sum(reply.deposited.deposit_bytes for reply in replies) == 64 * kv_token
    assert sum(reply.prefilled.exchanged.sent_bytes["kv"] for reply in replies) == 3 * 64 * kv_token


async def test_a_lost_member_is_an_error_for_the_others() -> None:
    model, prompt = tiny_model(), list(range(64))
    async with world(model, 2, 1) as shards:
        holdings = await shards.hold("r", prompt, greedy(1))
        await shards.prefill[1].close()
        with pytest.raises(PeerLost):
            await shards.fill("r", prompt, greedy(1), holdings)


async def test_pages_hold_what_the_oracle_computes() -> None:
    model, prompt = tiny_model(), list(range(30))
    async with world(model, 3, 2) as shards:
        holdings = await shards.hold("r", prompt, greedy(8))
        await shards.fill("r", prompt, greedy(8), holdings)
        for _, holding in holdings:
            await holding.filled.wait()
        async with world(model, 1, 1) as alone:
            ((_, whole),) = await alone.hold("r", prompt, greedy(8))
            await alone.fill("r", prompt, greedy(8), [(alone.decode[0], whole)])
            await whole.filled.wait()
            for shard, holding in holdings:
                assert holding.span.start % PAGE_TOKENS == 0
                for position in range(*holding.span):
                    for layer in range(model.config.layers):
                        ours, theirs = shard.pool.layer(layer), alone.decode[0].pool.layer(layer)
                        for mine, other in zip(ours, theirs, strict=True):
                            torch.testing.assert_close(
                                mine[holding.pages.slot(position)],
                                other[whole.pages.slot(position)],
                            )
