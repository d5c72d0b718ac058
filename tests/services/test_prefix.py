"""Prompts whose first pages are cached say what they say without: any degree, spread and method."""

import asyncio

import pytest
import torch

from sps2.common.errors import Internal, PeerLost
from sps2.common.messages import Scheme, Selection
from sps2.common.spans import Span, paged_split
from sps2.common.transport.frame import Frame, frame_for
from sps2.common.transport.plane import Plane
from sps2.services.decode.remote import prefix

from .world import PAGE_TOKENS, Shared, World, greedy, oracle, tiny_model, world


def prompt_of(tokens: int, seed: int = 0) -> list[int]:
    return torch.randint(97, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


async def cached(shards: World, prompt: list[int]) -> list[Span]:
    """Where the prompt lies after a first request has run."""
    await shards.run("first", prompt, greedy(2), keep=True)
    return paged_split(len(prompt), [1] * len(shards.decode), PAGE_TOKENS)


def shared(spans: list[Span], tokens: int) -> Shared:
    """The first tokens, as far as pages go."""
    whole = Span(0, tokens // PAGE_TOKENS * PAGE_TOKENS)
    return [(index, span & whole) for index, span in enumerate(spans) if (span & whole).tokens]


@pytest.mark.parametrize("backend", ["inproc", "tcp", "ucx"])
@pytest.mark.parametrize("decode", [1, 2, 3])
@pytest.mark.parametrize("degree", [1, 2, 3])
async def test_answers_equal_the_oracles(degree: int, decode: int, backend: str) -> None:
    model, prompt = tiny_model(), prompt_of(90)
    async with world(model, degree, decode, backend) as shards:
        spans = await cached(shards, prompt)
        for request, (common, rest) in {"a": (88, 2), "b": (41, 60), "c": (4, 3)}.items():
            second = prompt[:common] + prompt_of(rest, 1)
            _, answer = await oracle(model, second, 12)
            _, tokens = await shards.run(request, second, greedy(12), shared=shared(spans, common))
            assert [token.id for token in tokens] == answer
        named = sum(len(shard.holdings.cached.hashes()) for shard in shards.decode)
        assert named == len(prompt) // PAGE_TOKENS
        assert sum(shard.pool.free_pages for shard in shards.decode) == 64 * decode - named


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(
    "scheme",
    [
        Scheme("ring"),
        Scheme("gather"),
        Scheme("pass_q"),
        Scheme("ulysses", 4),
        Scheme("usp", 2),
        Scheme("gather", pipelined=False),
        Scheme("csa", selection=Selection((0.0,) * 3, (0.0,) * 3)),
    ],
    ids=lambda scheme: f"{scheme.method}-{scheme.pipelined}",
)
async def test_every_method_merges_the_prefix(scheme: Scheme, window: int | None) -> None:
    model, prompt = tiny_model(window), prompt_of(120)
    second = prompt[:77] + prompt_of(290, 2)
    _, answer = await oracle(model, second, 8)
    async with world(model, 4, 2, pages=256) as shards:
        spans = await cached(shards, prompt)
        replies, tokens = await shards.run(
            "r", second, greedy(8), scheme=scheme, shared=shared(spans, 77)
        )
    assert [token.id for token in tokens] == answer
    sent = [reply.prefilled.exchanged.sent_bytes for reply in replies]
    if window is None:
        q = sum(each["prefix_q"] for each in sent)
        layers, heads, dim = 3, 6, 16
        assert q == 2 * layers * (len(second) - 76) * heads * dim * 4
        assert sum(each["prefix_state"] for each in sent) == q * (dim + 1) // dim


async def test_csa_behind_a_prefix_drops_only_blocks_of_the_rest() -> None:
    model, prompt = tiny_model(), prompt_of(120)
    second = prompt[:77] + prompt_of(330, 2)
    chosen = Selection((2.0,) * 3, (2.0,) * 3, held_out=1)
    scheme = Scheme("csa", selection=chosen)
    found, blocks = [], []
    for decode in (1, 3):
        async with world(model, 4, decode, pages=256) as shards:
            spans = await cached(shards, prompt)
            replies, _ = await shards.run(
                "r", second, greedy(2, logprobs=5), scheme=scheme, shared=shared(spans, 77)
            )
        done = [reply.prefilled.exchanged for reply in replies]
        blocks.append((sum(each.blocks for each in done), sum(each.kept_blocks for each in done)))
        token = replies[-1].prefilled.token
        assert token is not None
        assert token.logprobs is not None
        found.append(torch.tensor([value for _, value in token.logprobs.top]))
    assert 0 < blocks[0][1] < blocks[0][0]
    assert blocks[1] == blocks[0]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("window", [None, 20])
async def test_keys_are_attended_to_in_any_portions(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix, "KEYS", 7)
    model, prompt = tiny_model(window), prompt_of(90)
    second = prompt[:80] + prompt_of(30, 1)
    _, answer = await oracle(model, second, 8)
    async with world(model, 2, 3) as shards:
        spans = await cached(shards, prompt)
        _, tokens = await shards.run("r", second, greedy(8), shared=shared(spans, 80))
    assert [token.id for token in tokens] == answer


async def test_only_the_rest_is_computed_and_kept() -> None:
    model, prompt = tiny_model(), prompt_of(60)
    async with world(model, 1, 1) as shards:
        spans = await cached(shards, prompt)
        (reply,), _ = await shards.run("r", prompt, greedy(1), shared=shared(spans, 59))
        assert reply.deposited.deposit_bytes == (60 - 56) * 3 * 2 * 2 * 16 * 4


async def test_a_prefix_that_its_shard_let_go_is_a_loss() -> None:
    model, prompt = tiny_model(), prompt_of(60)
    async with world(model, 2, 2) as shards:
        parts = shared(await cached(shards, prompt), 40)
        holdings = await shards.hold("r", prompt, greedy(2), parts)
        shards.decode[0].holdings.release(("r", 0))
        with pytest.raises(PeerLost, match="no longer holds the prefix"):
            await shards.fill("r", prompt, greedy(2), holdings, shared=parts)


@pytest.mark.parametrize("backend", ["tcp", "ucx"])
async def test_the_loss_of_who_has_the_prefix_is_noticed(backend: str) -> None:
    model, prompt = tiny_model(), prompt_of(60)
    async with world(model, 2, 2, backend) as shards:
        parts = shared(await cached(shards, prompt), 40)
        holdings = await shards.hold("r", prompt, greedy(2), parts)
        await shards.decode[0].plane.close()
        with pytest.raises(PeerLost):
            await shards.fill("r", prompt, greedy(2), holdings, shared=parts)


async def test_a_batch_reads_a_prefix_once_where_it_lies() -> None:
    """At the owner, and at the holder of its other half."""
    model, prompt = tiny_model(), prompt_of(600)
    prompts = [prompt[:592] + prompt_of(9, 1 + each) for each in range(4)]
    answers = [(await oracle(model, each, 30))[1] for each in prompts]
    async with world(model, 1, 2, pages=256) as shards:
        parts = shared(await cached(shards, prompt), 592)
        runs = await asyncio.gather(
            *(shards.run(f"r{i}", p, greedy(30), shared=parts) for i, p in enumerate(prompts))
        )
        assert [[token.id for token in tokens] for _, tokens in runs] == answers
        for shard in shards.decode:
            counters = shard.pool.counters
            assert 0 < counters["decode_keys_read"] < counters["decode_keys"] * 0.7


@pytest.mark.parametrize(
    "wrong",
    {
        "head_dim": (0, 0, torch.ones(5, 6, 32)),
        "heads": (0, 0, torch.ones(5, 7, 16)),
        "more heads": (0, 0, torch.ones(5, 9, 16)),
        "other heads": (0, 1, torch.ones(5, 6, 16)),
        "dtype": (0, 0, torch.ones(5, 6, 16, dtype=torch.int32)),
        "dimensions": (0, 0, torch.ones(5, 96)),
        "layer": (3, 0, torch.ones(5, 6, 16)),
        "nothing": (0, 0, None),
    }.items(),
    ids=lambda each: each[0],
)
async def test_a_question_that_does_not_fit_is_not_answered(
    wrong: tuple[str, tuple[int, int, torch.Tensor | None]], caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever asked learns so at once, and the request of which it asked goes on."""
    _, (layer, head, q) = wrong
    model, prompt = tiny_model(), prompt_of(60)
    async with asyncio.timeout(60), world(model, 1, 2, "tcp") as shards:
        parts = shared(await cached(shards, prompt), 40)
        holdings = await shards.hold("r", prompt, greedy(2), parts)
        stranger, shard = Plane("stranger/w", "tcp"), shards.decode[0].plane
        await stranger.start()
        stranger.introduce(shard.peer)
        with stranger.open("r", 0) as inbox:
            tensors = () if q is None else (q,)
            frame = frame_for("prefix_q", ("r",), (0,), layer, 40, tensors, head)
            await stranger.send(shard.name, frame, tensors)
            assert await inbox.recv("prefix_state", layer, 40, shard.name) == ()
        assert "a question of stranger/w could not be answered: " in caplog.text
        await shards.fill("r", prompt, greedy(2), holdings, shared=parts)
        await stranger.close()


@pytest.mark.parametrize(
    "wrong",
    [
        (torch.ones(20, 6, 32), torch.ones(20, 6)),
        (torch.ones(20, 6, 16), torch.ones(19, 6)),
        (torch.ones(20, 6, 16).half(), torch.ones(20, 6)),
        (torch.ones(20, 6, 16),),
    ],
)
async def test_a_state_that_does_not_fit_fails_the_prompt(wrong: tuple[torch.Tensor, ...]) -> None:
    model, prompt = tiny_model(), prompt_of(60)
    async with asyncio.timeout(60), world(model, 1, 2) as shards:
        parts = shared(await cached(shards, prompt), 40)
        holdings = await shards.hold("r", prompt, greedy(2), parts)
        plane, sends = shards.decode[0].plane, set()

        def answered(source: str, frame: Frame, tensors: tuple[torch.Tensor, ...]) -> None:
            plane.introduce(shards.prefill[0].peer)
            about = frame.requests, frame.epochs, frame.layer, frame.at
            reply = frame_for("prefix_state", *about, wrong)
            sends.add(asyncio.create_task(plane.send(source, reply, wrong)))

        plane.serve("prefix_q", answered)
        with pytest.raises(Internal, match=r"a prefix_state frame from decode-0/w of .* is wanted"):
            await shards.fill("r", prompt, greedy(2), holdings, shared=parts)
