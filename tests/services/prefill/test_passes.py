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
