"""Questions of any number of rows, and answers; what does not fit the model gets an error."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import torch
from torch import Tensor

from sps2.common.errors import Internal
from sps2.common.messages import Hold, Token
from sps2.common.model.config import ModelConfig
from sps2.common.model.sampler import Sampler
from sps2.common.transport.frame import Frame, frame_for
from sps2.common.transport.plane import Plane
from sps2.kernels import State
from sps2.services.decode.kv.holding import Holding
from sps2.services.decode.remote.exchange import Exchange, Question
from sps2.services.decode.sequence import Owned

from ....waiting import until
from ...world import DecodeShard, World, greedy, oracle, tiny_config, tiny_model, world

ROWS = 500
"""Names of 16 characters for so many do not fit a frame's header."""


async def test_one_step_asks_a_holder_about_500_rows() -> None:
    model, prompt = tiny_model(), list(range(12))
    _, answer = await oracle(model, prompt, 4)
    names = [f"request-{number:08}" for number in range(ROWS)]
    async with asyncio.timeout(60), world(model, 1, 2, "tcp", pages=3 * ROWS + 8) as shards:
        first = await shards.hold("first", prompt, greedy(4))
        await shards.fill("first", prompt, greedy(4), first)
        sequences = [await _same(shards, name, answer[0], first) for name in names]
        owner = shards.decode[1]
        await asyncio.gather(*(owner.batch.generate(each) for each in sequences))
        said = {
            name: [token.id for (key, _), token in owner.tokens if key == name] for name in names
        }
        assert said == dict.fromkeys(names, answer[1:])
        assert owner.batch.counters()["decode_steps"] == 3


async def _same(
    shards: World, name: str, token: int, first: list[tuple[DecodeShard, Holding]]
) -> Owned:
    """A request with the KV of another, of 12 tokens, that lies on two shards."""
    for shard, held in first:
        span = held.span
        growth = 4 if span.start else 0
        own = await shard.holdings.hold(Hold(name, 0, span, span.tokens + growth, (), ()))
        for layer in range(3):
            k, v = shard.pool.layer(layer)
            slots = [held.pages.slot(position) for position in range(span.start, span.stop)]
            own.put(layer, span.start, 0, k[slots], v[slots])
    owner, holder = shards.decode[1], shards.decode[0]
    owner.plane.introduce(holder.plane.peer)
    ended = asyncio.get_running_loop().create_future()
    sampler = Sampler(greedy(4), torch.arange(12))
    return Owned(own, (holder.plane.name,), 12, Token(0, token), sampler, ended, 16, lambda: None)


async def asked(exchange: Exchange, question: Question, layer: int, q: Tensor) -> list[State]:
    with exchange.asking(layer, [question]) as answers:
        await exchange.ask(question, layer, q)
        return await answers()


@asynccontextmanager
async def stranger(shards: World, config: ModelConfig) -> AsyncIterator[Exchange]:
    """The exchange of a peer of another model, which knows the first decode shard."""
    plane = Plane("stranger/w", "tcp")
    await plane.start()
    plane.introduce(shards.decode[0].plane.peer)
    shard = shards.decode[1]
    yield Exchange(config, plane, shard.pool, shard.holdings)
    await plane.close()


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


WRONG = {
    "head_dim": (tiny_config(), 0, ones(1, 6, 32)),
    "heads": (tiny_config(), 0, ones(1, 12, 16)),
    "rows": (tiny_config(), 0, ones(3, 6, 16)),
    "dimensions": (tiny_config(), 0, ones(6, 16)),
    "dtype": (tiny_config(), 0, ones(1, 6, 16, dtype=torch.int32)),
    "layer": (tiny_config(), 3, ones(1, 6, 16)),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_question_that_does_not_fit_gets_an_error(wrong: str) -> None:
    config, layer, q = WRONG[wrong]
    model, prompt = tiny_model(), list(range(40))
    _, answer = await oracle(model, prompt, 60)
    async with asyncio.timeout(60), world(model, 1, 2, "tcp") as shards:
        running = asyncio.create_task(shards.run("r", prompt, greedy(60)))
        await until(lambda: shards.decode[1].tokens)
        async with stranger(shards, config) as exchange:
            question = Question.about(shards.decode[0].plane.name, [("r", 0)], [41], 1)
            with pytest.raises(Internal, match=r"decode-0/w could not answer: .* wanted"):
                await asked(exchange, question, layer, q)
        _, tokens = await running
    assert [token.id for token in tokens] == answer


async def test_what_is_no_question_at_all_harms_nobody() -> None:
    model, prompt = tiny_model(), list(range(40))
    _, answer = await oracle(model, prompt, 60)
    async with asyncio.timeout(60), world(model, 1, 2, "tcp") as shards:
        holder = shards.decode[0].plane
        running = asyncio.create_task(shards.run("r", prompt, greedy(60)))
        await until(lambda: shards.decode[1].tokens)
        async with stranger(shards, tiny_config()) as exchange:
            plane, answers = exchange._plane, list[Frame]()
            plane.serve("answer", lambda _, frame, __: answers.append(frame))
            q, at = ones(1, 6, 16), torch.tensor([41], dtype=torch.int32)
            junk = torch.full((7,), 255, dtype=torch.uint8)
            for tensors in ((), (q,), (q, at), (q, at, junk), (q, at, at), (junk, junk, junk)):
                await plane.send(holder.name, frame_for("question", (), (), 0, 1, tensors), tensors)
            await until(lambda: len(answers) == 6)
        _, tokens = await running
    assert [token.id for token in tokens] == answer


@pytest.mark.parametrize("wrong", ["out", "lse", "dtype", "count", "junk"])
async def test_an_answer_that_does_not_fit_fails_who_asked_alone(wrong: str) -> None:
    model, spread, local = tiny_model(), list(range(40)), [4]
    _, answer = await oracle(model, local, 60)
    async with asyncio.timeout(60), world(model, 1, 2, "tcp", pages=256) as shards:
        holder, owner = shards.decode[0].plane, shards.decode[1]
        holder.introduce(owner.plane.peer)
        sends = set()

        def answered(source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
            state: dict[str, tuple[Tensor, ...]] = {
                "out": (ones(1, 6, 32), ones(1, 6)),
                "lse": (ones(1, 6, 16), ones(1, 7)),
                "dtype": (ones(1, 6, 16, dtype=torch.float16), ones(1, 6)),
                "count": (ones(1, 6, 16),) * 3,
                "junk": (torch.full((9,), 255, dtype=torch.uint8),),
            }
            reply = frame_for("answer", (), (), frame.layer, frame.at, state[wrong])
            sends.add(asyncio.create_task(holder.send(source, reply, state[wrong])))

        running = asyncio.create_task(shards.run("local", local, greedy(60)))
        asking = asyncio.create_task(shards.run("spread", spread, greedy(200)))
        await until(lambda: ("spread", 0) in {key for key, _ in owner.tokens})
        holder.serve("question", answered)
        with pytest.raises(Internal, match="decode-0/w sent an invalid answer"):
            await asking
        _, tokens = await running
        assert [token.id for token in tokens] == answer


async def test_a_holder_that_fails_says_so_at_once(caplog: pytest.LogCaptureFixture) -> None:
    model, spread, local = tiny_model(), list(range(40)), [4]
    _, answer = await oracle(model, local, 60)
    async with asyncio.timeout(60), world(model, 1, 2, pages=256) as shards:
        holder, owner = shards.decode[0], shards.decode[1]
        running = asyncio.create_task(shards.run("local", local, greedy(60)))
        asking = asyncio.create_task(shards.run("spread", spread, greedy(200)))
        await until(lambda: ("spread", 0) in {key for key, _ in owner.tokens})

        def exhausted(layer: int) -> tuple[Tensor, Tensor]:
            raise torch.OutOfMemoryError("CUDA out of memory")

        holder.pool.layer = exhausted  # type: ignore[method-assign]
        with pytest.raises(Internal, match="OutOfMemoryError"):
            await asking
        _, tokens = await running
        assert [token.id for token in tokens] == answer
    assert "a question of decode-1/w could not be answered" in caplog.text
