"""SP decode equals the oracle; requests join and leave at any step; losses touch only their own."""

import asyncio
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from sps2.common.errors import Cancelled, Internal, Invalid, PeerLost, Unsound
from sps2.common.messages import Sampling, Token
from sps2.common.model.sampler import Sampler
from sps2.services.decode.remote import exchange

from ...waiting import until
from ..world import greedy, oracle, tiny_model, world


@pytest.mark.parametrize("decode", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 6, 50])
@pytest.mark.parametrize("backend", ["inproc", "tcp", "ucx"])
async def test_greedy_answers_equal_the_oracles(backend: str, length: int, decode: int) -> None:
    model, prompt = tiny_model(), [5 * index % 97 for index in range(length)]
    _, answer = await oracle(model, prompt, 20)
    async with world(model, 2, decode, backend) as shards:
        _, tokens = await shards.run("r", prompt, greedy(20))
    assert [token.id for token in tokens] == answer
    assert [token.index for token in tokens] == list(range(20))
    assert [token.finish for token in tokens] == [None] * 19 + ["length"]


async def test_requests_join_and_leave_at_any_step() -> None:
    model = tiny_model()
    prompts = [[(3 * start + index) % 97 for index in range(2 + 9 * start)] for start in range(6)]
    lengths = [25, 3, 14, 30, 1, 8]
    answers = [(await oracle(model, *each))[1] for each in zip(prompts, lengths, strict=True)]
    async with world(model, 2, 3) as shards:

        async def late(index: int) -> list[int]:
            for _ in range(40 * index):
                await asyncio.sleep(0)
            name = f"r{index}"
            _, tokens = await shards.run(name, prompts[index], greedy(lengths[index]))
            return [token.id for token in tokens]

        assert await asyncio.gather(*map(late, range(6))) == answers
        assert [shard.pool.free_pages for shard in shards.decode] == [64] * 3


@pytest.mark.parametrize("decode", [1, 2])
async def test_answers_that_grow_equal_the_oracles(decode: int) -> None:
    model = tiny_model()
    prompts = [[(3 * start + index) % 97 for index in range(2 + 9 * start)] for start in range(3)]
    answers = [(await oracle(model, prompt, 60))[1] for prompt in prompts]
    async with world(model, 2, decode) as shards:
        found = await asyncio.gather(
            *(
                shards.run(f"r{index}", prompt, greedy(60), growth=5)
                for index, prompt in enumerate(prompts)
            )
        )
        assert [[token.id for token in tokens] for _, tokens in found] == answers
        assert {*shards.asked} == {"r0", "r1", "r2"}
        assert len(shards.asked) > 9
        assert [shard.pool.free_pages for shard in shards.decode] == [64] * decode


async def test_an_answer_without_room_pauses_and_the_others_go_on() -> None:
    model, prompt = tiny_model(), list(range(10))
    _, answer = await oracle(model, prompt, 60)
    async with world(model, 1, 1) as shards:
        shards.has_room.clear()
        paused = asyncio.create_task(shards.run("paused", prompt, greedy(60), growth=8))
        for name in ("other", "another"):
            _, other = await shards.run(name, prompt, greedy(60))
            assert [token.id for token in other] == answer
        assert not paused.done()
        assert shards.asked == ["paused"], "once"
        (owner,) = shards.decode
        assert 6 <= len([name for name, _ in owner.tokens if name == ("paused", 0)]) <= 12
        shards.has_room.set()
        _, tokens = await paused
        assert [token.id for token in tokens] == answer


async def test_a_paused_answer_can_be_cancelled() -> None:
    async with world(tiny_model(), 1, 1) as shards:
        shards.has_room.clear()
        paused = asyncio.create_task(shards.run("r", [1, 2, 3], greedy(60), growth=4))
        await until(lambda: len(shards.decode[0].tokens) >= 3)
        paused.cancel()
        with pytest.raises(asyncio.CancelledError):
            await paused
        assert shards.decode[0].pool.free_pages == 64


async def test_stop_ids_end_generation_after_min_tokens() -> None:
    model, prompt = tiny_model(), [1, 2, 3]
    _, answer = await oracle(model, prompt, 10)
    async with world(model, 1, 1) as shards:
        _, tokens = await shards.run("r", prompt, greedy(10, stop_token_ids=(answer[4],)))
        stopped = answer.index(answer[4])
        assert [token.id for token in tokens] == answer[: stopped + 1]
        assert tokens[-1].finish == "stop"
        _, longer = await shards.run(
            "s", prompt, greedy(10, stop_token_ids=(answer[4],), min_tokens=8)
        )
        assert len(longer) >= 8


async def test_a_seed_draws_the_same_tokens_on_any_layout() -> None:
    model, prompt = tiny_model(), list(range(40))
    drawn = []
    for prefill, decode in ((1, 1), (3, 2)):
        async with world(model, prefill, decode) as shards:
            sampling = Sampling(max_tokens=16, seed=11, temperature=0.7, top_p=0.9, top_k=20)
            _, tokens = await shards.run("r", prompt, sampling)
            drawn.append([token.id for token in tokens])
    assert drawn[0] == drawn[1]


async def test_a_lost_holder_fails_its_requests_and_no_others() -> None:
    model = tiny_model()
    spread, local = list(range(60)), [4]
    _, answer = await oracle(model, local, 200)
    async with world(model, 1, 2, "tcp", pages=256) as shards:
        owner = shards.decode[1]

        async def lose() -> None:
            while len(owner.tokens) < 20:
                await asyncio.sleep(0.001)
            await shards.decode[0].plane.close()

        results = await asyncio.gather(
            shards.run("spread", spread, greedy(400)),
            shards.run("local", local, greedy(200)),
            lose(),
            return_exceptions=True,
        )
        assert isinstance(results[0], PeerLost)
        assert not isinstance(results[1], BaseException)
        assert [token.id for token in results[1][1]] == answer


async def test_a_silent_holder_holds_up_only_who_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "ANSWER_S", 3600.0)
    model = tiny_model()
    _, answer = await oracle(model, [4], 100)
    async with asyncio.timeout(60), world(model, 1, 2, "tcp", pages=256) as shards:
        owner = shards.decode[1]
        spread = asyncio.create_task(shards.run("spread", list(range(60)), greedy(400)))
        local = asyncio.create_task(shards.run("local", [4], greedy(100)))
        while len(owner.tokens) < 20:
            await asyncio.sleep(0.001)
        shards.decode[0].plane.serve("question", lambda *_: None)  # as after a cut
        await asyncio.sleep(0.1)
        assert not local.done()
        spread.cancel()
        _, tokens = await local
    assert [token.id for token in tokens] == answer


async def test_a_cancelled_request_gives_its_pages_back_between_steps() -> None:
    model = tiny_model()
    async with world(model, 1, 2) as shards:
        task = asyncio.create_task(shards.run("r", list(range(30)), greedy(200)))
        while len(shards.decode[1].tokens) < 5:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait({task})
        assert [shard.pool.free_pages for shard in shards.decode] == [64, 64]
        _, answer = await oracle(model, [9, 8], 10)
        _, tokens = await shards.run("s", [9, 8], greedy(10))
        assert [token.id for token in tokens] == answer


async def test_a_request_that_its_holder_let_go_fails_alone() -> None:
    model = tiny_model()
    prompt = list(range(60))
    _, answer = await oracle(model, prompt, 100)
    async with world(model, 1, 2, pages=256) as shards:

        async def end_at_the_holder() -> None:
            while len(shards.decode[1].tokens) < 20:
                await asyncio.sleep(0.001)
            shards.decode[0].holdings.release(("ended", 0))

        results = await asyncio.gather(
            shards.run("ended", prompt, greedy(400)),
            shards.run("other", prompt, greedy(100)),
            end_at_the_holder(),
            return_exceptions=True,
        )
        assert type(results[0]) is PeerLost
        assert not isinstance(results[1], BaseException)
        assert [token.id for token in results[1][1]] == answer


async def test_a_cancel_in_the_last_step_ends_that_request_alone() -> None:
    model = tiny_model()
    _, answer = await oracle(model, [9, 8], 30)
    async with world(model, 1, 1) as shards:
        scores, tokens = model.scores, shards.decode[0].tokens
        victim = asyncio.create_task(shards.run("victim", [4], greedy(5)))

        async def last(*args: Any, **named: Any) -> Tensor | None:
            if [key for key, _ in tokens].count(("victim", 0)) == 3:
                victim.cancel()  # the last of its tokens is about to be drawn
            return await scores(*args, **named)

        model.scores = last  # type: ignore[method-assign]
        _, tokens_of_other = await shards.run("neighbour", [9, 8], greedy(30))
        await asyncio.wait({victim})
        assert victim.cancelled()
        assert [token.id for token in tokens_of_other] == answer
        assert [key for key, _ in tokens].count(("victim", 0)) == 3


async def test_a_failing_sampler_fails_its_request_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Breaks(Sampler):
        def accept(self, token: int, logits: Tensor | None, index: int) -> Token:
            if self._sampling.seed == 13 and index == 4:
                raise ZeroDivisionError("secret")
            if self._sampling.seed == 14 and index == 4:
                raise Unsound("the logits of this request are not numbers")
            if self._sampling.seed == 15 and index == 4:
                raise Invalid("the grammar of this request is too complex")
            return super().accept(token, logits, index)

    monkeypatch.setattr("tests.services.world.Sampler", Breaks)
    model, prompts = tiny_model(), {0: [9, 8], 13: [4], 14: [5, 6], 15: [7]}
    _, answer = await oracle(model, prompts[0], 20)
    async with world(model, 1, 1) as shards:
        runs = (
            shards.run(f"r{seed}", prompt, msgspec.structs.replace(greedy(20), seed=seed))
            for seed, prompt in prompts.items()
        )
        good, broken, known, wrong = await asyncio.gather(*runs, return_exceptions=True)
        assert not isinstance(good, BaseException)
        assert [token.id for token in good[1]] == answer
        assert isinstance(broken, Internal)
        assert "secret" not in str(broken)
        assert isinstance(known, Unsound)
        assert "not numbers" in str(known)
        assert isinstance(wrong, Invalid)
        assert "too complex" in str(wrong)
        assert [each.message for each in caplog.records] == ["no token could be drawn"] * 2
        assert shards.decode[0].pool.free_pages == 64


async def test_a_step_that_fails_is_the_end_of_its_batch_and_not_of_the_shard() -> None:
    model = tiny_model()
    _, answer = await oracle(model, [9, 8], 10)
    async with world(model, 1, 1) as shards:
        scores, tokens = model.scores, shards.decode[0].tokens

        async def exhausted(*args: Any, **named: Any) -> Tensor | None:
            if len(tokens) == 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return await scores(*args, **named)

        model.scores = exhausted  # type: ignore[method-assign]
        with pytest.raises(Internal, match="OutOfMemoryError"):
            await shards.run("large", [4], greedy(30))
        model.scores = scores  # type: ignore[method-assign]
        _, later = await shards.run("later", [9, 8], greedy(10))
        assert [token.id for token in later] == answer
        assert shards.decode[0].pool.free_pages == 64


async def test_a_batch_that_has_emptied_makes_no_step(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    async with world(model, 1, 1) as shards:
        batch, tokens, scores = shards.decode[0].batch, shards.decode[0].tokens, model.scores
        runs = [asyncio.create_task(shards.run(name, [1, 2], greedy(100))) for name in "ab"]
        await until(lambda: len({key for key, _ in tokens}) == 2)
        leaving: list[asyncio.Task[None]] = []

        async def both_leave() -> None:
            await batch.leave(("a", 0))  # the lock is here, and the next step waits for it
            await batch.leave(("b", 0))

        async def during(*args: Any, **named: Any) -> Tensor | None:
            if not leaving:
                leaving.append(asyncio.create_task(both_leave()))
                await asyncio.sleep(0)
            return await scores(*args, **named)

        model.scores = during  # type: ignore[method-assign]
        await until(lambda: leaving)
        await leaving[0]
        for run in runs:
            run.cancel()
        await asyncio.wait(runs)
        steps = batch.counters()["decode_steps"]
        assert len((await shards.run("c", [1, 2], greedy(5)))[1]) == 5
        assert batch.counters()["decode_steps"] == steps + 4
    assert not caplog.records


async def test_a_request_that_leaves_is_ended() -> None:
    async with asyncio.timeout(60), world(tiny_model(), 1, 1) as shards:
        task = asyncio.create_task(shards.run("r", [1, 2], greedy(200)))
        await until(lambda: len(shards.decode[0].tokens) >= 5)
        await shards.decode[0].batch.leave(("r", 0))
        with pytest.raises(Cancelled, match="was ended"):
            await task
