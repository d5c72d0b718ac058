"""Passes of prompts that take decode steps along."""

import asyncio

import pytest
import torch
from torch import Tensor

from sps2.common.model.llama import Llama
from sps2.services.prefill.compute_queue import Compute
from sps2.services.prefill.passes import Passes
from sps2.services.prefill.timeline import Timeline

from ..world import oracle, tiny_model
from .test_passes import ROWS, Attention, at_once, counted, ids_of, wanted


class Steps:
    """Decode steps of one row that follow each other, as a batch has them run."""

    def __init__(self, passes: Passes, model: Llama, count: int) -> None:
        self.left = count
        self._passes = passes
        self._model = model
        self.shared = 0

    async def run(self) -> None:
        while self.left:
            attend = Attention(self._model, 1)
            step = torch.tensor([3]), torch.arange(1)
            if self._passes.takes_steps:
                self.shared += 1
                hidden = await self._passes.step(*step, attend)
            else:
                hidden = await self._model.step(*step, attend)
            wanted = (await oracle(tiny_model(), [3], 1))[0][-1:]
            torch.testing.assert_close(self._model.logits(hidden), wanted, atol=1e-4, rtol=1e-4)
            self.left -= 1
        self._passes.look()


async def test_a_chunk_takes_the_rows_of_the_next_decode_step_along() -> None:
    model = tiny_model()
    rows = counted(model)
    steps: list[Steps] = []
    passes = Passes(model, Compute(at_once), lambda: any(each.left for each in steps))
    steps.append(Steps(passes, model, 12))
    stepping = asyncio.create_task(steps[0].run())

    async def chunk(length: int) -> Tensor:
        attend, every = Attention(model, length), torch.arange(length)[-ROWS:]
        places = torch.arange(length)
        timeline = Timeline()
        hidden = await passes.forward(
            ids_of(length), places, attend, timeline, every, shares_steps=True
        )
        return model.logits(hidden)

    for length in (300, 40, 300):
        logits = await chunk(length)
        torch.testing.assert_close(logits, await wanted(length), atol=1e-4, rtol=1e-4)
    await stepping
    assert {301, 41} <= {*rows}, "a chunk and a step in one pass"
    assert not {300, 40} & {*rows}
    assert steps[0].shared >= 3
    logits = await chunk(300)  # nothing is decoded any more
    torch.testing.assert_close(logits, await wanted(300), atol=1e-4, rtol=1e-4)
    assert rows[-1] == 300


async def test_no_piece_of_a_chunk_is_held_back_by_the_step_in_its_pass() -> None:
    """Its attention to earlier chunks is computed as a piece of its own."""
    model = tiny_model()
    compute = Compute(at_once)
    passes = Passes(model, compute, lambda: True)
    urgencies, held = list[float](), list[bool]()

    class Watching(Attention):
        async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            urgencies.extend(each.urgency() for each in compute._prefills if each.urgency)
            held.append(compute._held_since_s is not None)
            return await super().__call__(layer, q, k, v)

    places = torch.arange(300)
    chunk = passes.forward(
        ids_of(300), places, Watching(model, 300), Timeline(), places[:1], shares_steps=True
    )
    step = passes.step(torch.tensor([3]), torch.arange(1), Attention(model, 1))
    await asyncio.gather(chunk, step)
    assert {*urgencies} == {0.0}
    with compute.prefill(lambda: 3.0):  # of another prompt, on several shards
        await passes.step(torch.tensor([3]), torch.arange(1), Watching(model, 1))
    assert not any(held)


class Rank(Attention):
    """Waits in each layer for the other shard's rank of the same prompt."""

    def __init__(self, model: Llama, length: int, meet: asyncio.Barrier) -> None:
        super().__init__(model, length)
        self._meet = meet

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        await self._meet.wait()
        return await super().__call__(layer, q, k, v)


@pytest.mark.parametrize("length", [40, 300])
async def test_ranks_take_steps_along_and_never_wait_in_a_circle(length: int) -> None:
    """Each of two prompts begins on one shard first, and takes the step of that shard along."""

    def decoding() -> tuple[Llama, Passes, Steps, list[int]]:
        model, steps = tiny_model(), list[Steps]()
        rows = counted(model)
        passes = Passes(model, Compute(at_once), lambda: any(each.left for each in steps))
        steps.append(Steps(passes, model, 40))
        return model, passes, steps[0], rows

    shards = [decoding(), decoding()]
    stepping = [asyncio.create_task(steps.run()) for _, _, steps, _ in shards]
    prompts = [asyncio.Barrier(2), asyncio.Barrier(2)]

    async def rank(shard: int, prompt: int) -> Tensor:
        model, passes, *_ = shards[shard]
        attend, places = Rank(model, length, prompts[prompt]), torch.arange(length)
        hidden = await passes.forward(
            ids_of(length),
            places,
            attend,
            Timeline(),
            places[-ROWS:],
            shares_steps=True,
            is_rank=True,
        )
        return model.logits(hidden)

    first = [asyncio.create_task(rank(each, each)) for each in range(2)]
    while not all(length + 1 in rows for *_, rows in shards):
        await asyncio.sleep(0)
    second = [asyncio.create_task(rank(1 - each, each)) for each in range(2)]
    async with asyncio.timeout(30):
        found = await asyncio.gather(*first, *second, *stepping)
    for logits in found[:4]:
        torch.testing.assert_close(logits, await wanted(length), atol=1e-4, rtol=1e-4)
    assert all(steps.shared for _, _, steps, _ in shards)


async def test_an_urgent_prompt_does_not_wait_for_a_step_in_the_pass_of_a_long_one() -> None:
    model = tiny_model()
    rows = counted(model)
    passes = Passes(model, Compute(at_once), lambda: True)
    gate = asyncio.Event()

    class Gated(Attention):
        async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            await gate.wait()
            return await super().__call__(layer, q, k, v)

    places = torch.arange(300)
    long = asyncio.create_task(
        passes.forward(
            ids_of(300), places, Gated(model, 300), Timeline(), places[:1], shares_steps=True
        )
    )
    step = asyncio.create_task(passes.step(torch.tensor([3]), torch.arange(1), Attention(model, 1)))
    while not rows:
        await asyncio.sleep(0)
    assert rows == [301]
    few = torch.arange(9)
    async with asyncio.timeout(30):
        await passes.forward(
            ids_of(9),
            few,
            Attention(model, 9),
            Timeline(),
            few[-1:],
            urgency=lambda: 1.0,
            shares_steps=True,
        )
    assert not long.done()
    gate.set()
    await asyncio.gather(long, step)
