"""Prompts that wait together run together; each gets what it would get alone, whoever leaves."""

import asyncio
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sps2.common.messages.prefill import PIECE_ROWS
from sps2.common.model.llama import Llama
from sps2.common.model.local import LocalAttention
from sps2.services.prefill.compute_queue import Compute
from sps2.services.prefill.passes import AttendHere, Passes
from sps2.services.prefill.timeline import Timeline

from ..world import oracle, tiny_model

LENGTHS = (1, 40, 7, 23)
ROWS = 9
"""Asked for of each."""


def at_once(work: Callable[[], object]) -> asyncio.Future[object]:
    """Computes on the loop."""
    ended: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    try:
        ended.set_result(work())
    except Exception as error:
        ended.set_exception(error)
    return ended


def ids_of(length: int) -> Tensor:
    return torch.arange(length) * 7 % 97


def counted(model: Llama) -> list[int]:
    """Rows of each pass through the model from now on."""
    rows: list[int] = []
    forward = model.forward

    async def counting(ids: Tensor, *arguments: object, **more: object) -> Tensor:
        rows.append(len(ids))
        return await forward(ids, *arguments, **more)  # type: ignore[arg-type]

    model.forward = counting  # type: ignore[method-assign, assignment]
    return rows


class Attention(LocalAttention):
    """Calls `before(layer)` in each layer."""

    def __init__(self, model: Llama, length: int, before: Callable[[int], object] = id) -> None:
        super().__init__(model.config, torch.arange(length))
        self._before = before

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._before(layer)
        await asyncio.sleep(0)
        return await super().__call__(layer, q, k, v)


async def forward(passes: Passes, model: Llama, length: int, **options: object) -> Tensor:
    attend = Attention(model, length, **options)  # type: ignore[arg-type]
    asked = torch.arange(length)[-ROWS:]
    hidden = await passes.forward(ids_of(length), torch.arange(length), attend, Timeline(), asked)
    return model.logits(hidden)


async def wanted(length: int) -> Tensor:
    return (await oracle(tiny_model(), ids_of(length).tolist(), 1))[0][-ROWS:]


async def test_what_waits_is_one_pass() -> None:
    model = tiny_model()
    rows, passes = counted(model), Passes(model, Compute(at_once))
    first = asyncio.create_task(forward(passes, model, 9))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    found = await asyncio.gather(*(forward(passes, model, length) for length in LENGTHS))
    await first
    assert rows == [9, sum(LENGTHS)]
    for length, logits in zip(LENGTHS, found, strict=True):
        torch.testing.assert_close(logits, await wanted(length), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layer", [0, 1, 2])
async def test_one_that_fails_or_is_cancelled_leaves_the_others_alone(layer: int) -> None:
    model = tiny_model()
    passes = Passes(model, Compute(at_once))
    leaving: list[asyncio.Task[Tensor]] = []

    def fail(at: int) -> None:
        if at == layer:
            raise ValueError("no attention here")

    def cancel(at: int) -> None:
        if at == layer:
            leaving[0].cancel()

    failing = asyncio.create_task(forward(passes, model, 5, before=fail))
    leaving.append(asyncio.create_task(forward(passes, model, 6, before=cancel)))
    found = await asyncio.gather(*(forward(passes, model, length) for length in LENGTHS))
    for length, logits in zip(LENGTHS, found, strict=True):
        torch.testing.assert_close(logits, await wanted(length), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="no attention here"):
        await failing
    with pytest.raises(asyncio.CancelledError):
        await leaving[0]


async def test_a_pass_ends_when_all_have_left_and_the_next_runs() -> None:
    model = tiny_model()
    passes = Passes(model, Compute(at_once))
    tasks = [asyncio.create_task(forward(passes, model, length)) for length in LENGTHS]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    logits = await forward(passes, model, 11)
    torch.testing.assert_close(logits, await wanted(11), atol=1e-4, rtol=1e-4)


async def test_arithmetic_that_fails_fails_all_of_a_pass_and_no_later_one() -> None:
    model = tiny_model()
    passes = Passes(model, Compute(at_once))
    layers, model._layers = model._layers, []
    native, model._native = model._native, None
    tasks = [asyncio.create_task(forward(passes, model, length)) for length in LENGTHS]
    await asyncio.wait(tasks)
    assert all(isinstance(task.exception(), IndexError) for task in tasks)
    model._layers, model._native = layers, native
    logits = await forward(passes, model, 11)
    torch.testing.assert_close(logits, await wanted(11), atol=1e-4, rtol=1e-4)


def drawn(model: Llama, length: int, layers: list[int]) -> AttendHere:
    """Attention on the calling thread; `layers` hears of each layer."""
    attend = LocalAttention(model.config, torch.arange(length))

    def here(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        layers.append(layer)
        try:
            attend(layer, q, k, v).send(None)
        except StopIteration as end:
            out: Tensor = end.value
            return out
        raise AssertionError("it waited")

    return here


@pytest.mark.parametrize("lengths", [(9,), (1, 40, 7), (PIECE_ROWS + 1,)])
async def test_prompts_that_exchange_nothing_are_one_piece(lengths: tuple[int, ...]) -> None:
    model, pieces = tiny_model(), 0

    def counting(work: Callable[[], object]) -> asyncio.Future[object]:
        nonlocal pieces
        pieces += 1
        return at_once(work)

    passes = Passes(model, Compute(counting))
    layers: list[int] = []

    async def hidden(length: int) -> Tensor:
        ids, positions, last = ids_of(length), torch.arange(length), torch.arange(length)[-ROWS:]
        attend = Attention(model, length)
        here = drawn(model, length, layers)
        return await passes.forward(ids, positions, attend, Timeline(), last, attend_here=here)

    found = await asyncio.gather(*(hidden(length) for length in lengths))
    for length, states in zip(lengths, found, strict=True):
        wanted_here = await wanted(length)
        torch.testing.assert_close(model.logits(states), wanted_here, atol=1e-4, rtol=1e-4)
    many = sum(lengths) > PIECE_ROWS
    assert (pieces == 1) == (not many)
    assert len(layers) == (0 if many else model.config.layers * len(lengths))


async def test_one_that_cannot_attend_on_the_thread_keeps_its_pass_in_pieces() -> None:
    model = tiny_model()
    passes = Passes(model, Compute(at_once))
    alone, other = 7, 5

    async def hidden(length: int, here: AttendHere | None) -> Tensor:
        ids, positions, last = ids_of(length), torch.arange(length), torch.arange(length)[-ROWS:]
        attend = Attention(model, length)
        return await passes.forward(ids, positions, attend, Timeline(), last, attend_here=here)

    layers: list[int] = []
    found = await asyncio.gather(hidden(alone, drawn(model, alone, layers)), hidden(other, None))
    assert layers == []
    for length, states in zip((alone, other), found, strict=True):
        torch.testing.assert_close(model.logits(states), await wanted(length), atol=1e-4, rtol=1e-4)


async def test_a_pass_is_as_urgent_as_whoever_waits_for_its_end() -> None:
    """Else a pass of low priority, held back by a long prompt, would hold up an urgent one."""
    model, passes_ran = tiny_model(), asyncio.Event()
    gate: list[asyncio.Future[object]] = []

    def slow(work: Callable[[], object]) -> asyncio.Future[object]:
        passes_ran.set()
        gate.append(asyncio.get_running_loop().create_future())
        work_done = gate[-1]
        work_done.add_done_callback(lambda _: None)
        results.append(work)
        return work_done

    results: list[Callable[[], object]] = []
    passes = Passes(model, Compute(slow))

    def low() -> float:
        return -5.0

    def high() -> float:
        return 5.0

    async def hidden(length: int, urgency: Callable[[], float]) -> Tensor:
        ids, positions, last = ids_of(length), torch.arange(length), torch.arange(length)[-ROWS:]
        return await passes.forward(
            ids, positions, Attention(model, length), Timeline(), last, urgency
        )

    first = asyncio.create_task(hidden(5, low))
    await passes_ran.wait()
    assert passes.urgency(low) == -5.0
    second = asyncio.create_task(hidden(6, high))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert passes.urgency(low) == 5.0, "it inherits"
    while not (first.done() and second.done()):
        for ended, work in zip(gate, results, strict=True):
            if not ended.done():
                ended.set_result(work())
        await asyncio.sleep(0)
    for length, task in ((5, first), (6, second)):
        torch.testing.assert_close(
            model.logits(await task), await wanted(length), atol=1e-4, rtol=1e-4
        )


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


@pytest.mark.parametrize("length", [PIECE_ROWS, PIECE_ROWS + 1])
async def test_an_urgent_prompt_waits_only_for_passes_that_are_one_piece(length: int) -> None:
    model, gate = tiny_model(), asyncio.Event()
    rows, passes = counted(model), Passes(model, Compute(at_once))

    class Gated(Attention):
        async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            await gate.wait()
            return await super().__call__(layer, q, k, v)

    places, few = torch.arange(length), torch.arange(9)
    gated = Gated(model, length)
    long = asyncio.create_task(
        passes.forward(ids_of(length), places, gated, Timeline(), places[:1])
    )
    while not rows:
        await asyncio.sleep(0)
    attend = Attention(model, 9)
    urgent = asyncio.create_task(
        passes.forward(ids_of(9), few, attend, Timeline(), few[-1:], urgency=lambda: 1.0)
    )
    for _ in range(100):
        await asyncio.sleep(0)
    assert urgent.done() == (length > PIECE_ROWS)
    gate.set()
    await asyncio.gather(long, urgent)
