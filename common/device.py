"""The device of a process, and the transfers of tensors to and from it beside the arithmetic.

On a GPU all threads compute on its default stream, so that later work sees the results of earlier
work. Tensors are copied on two more streams, one each way. A copy from the GPU waits for the event
of the work that made the tensor, not for work queued after it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sps2.common.errors import Invalid
from sps2.kernels import gpu

Result = TypeVar("Result")
Mark = Callable[[], float]
"""Waits until a moment has passed, and returns it in seconds of `time.monotonic`."""

AHEAD = 2
"""Pieces of work that are queued on a GPU behind the one that runs. So the GPU never waits for the
next, and no more than these are wasted when a request ends."""
AWAKE_S = 1e-4
"""How long an event is polled before a thread waits for it."""
BASE_S = 60.0
"""How long times are measured from the same CUDA event: elapsed times are 32-bit floats."""


class Device(Protocol):
    """The device of a process. `compute` and `mark` may be called on any thread, the rest on its
    data loop."""

    place: torch.device

    def compute(self, work: Callable[[], Result]) -> Result:
        """Call `work` and return its result, whose tensors may be used at once.

        `work` returns tensors of its own: nothing else writes to their memory.
        """
        ...

    def mark(self) -> Mark:
        """The moment when all work computed so far is done."""
        ...

    def up(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Copy tensors to the device; the copies may be used at once."""
        ...

    async def down(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Copy tensors to the host, contiguous, and wait until they are there.

        Calls end in the order in which they were made.
        """
        ...


class Host:
    """The CPU: nothing is copied, and results are complete when `compute` returns."""

    place = torch.device("cpu")

    def compute(self, work: Callable[[], Result]) -> Result:
        return work()

    def mark(self) -> Mark:
        now = time.monotonic()
        return lambda: now

    def up(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensors)

    async def down(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensor.contiguous() for tensor in tensors)


HOST = Host()


class Cuda:
    """A GPU. Tensors on their way to the host pass through pinned memory.

    Args:
        card: its index among the GPUs that are visible to this process.
    """

    def __init__(self, card: int = 0) -> None:
        self.place = torch.device("cuda", card)
        self._computing = torch.cuda.default_stream(self.place)
        self._leaving = torch.cuda.Stream(self.place)
        self._coming = torch.cuda.Stream(self.place)
        self._queued: deque[torch.cuda.Event] = deque()
        self._made = WeakTensorKeyDictionary()
        """The event after the work that made a tensor."""
        self._turn = asyncio.Lock()
        self._waiter = ThreadPoolExecutor(1, "events")
        self._base, self._base_s = self._new_base()

    def compute(self, work: Callable[[], Result]) -> Result:
        result = work()
        done = torch.cuda.Event(blocking=True)
        done.record(self._computing)
        for tensor in _tensors(result):
            self._made[_owner(tensor)] = done
        self._queued.append(done)
        while len(self._queued) > AHEAD:
            self._queued.popleft().synchronize()
        return result

    def mark(self) -> Mark:
        if time.monotonic() - self._base_s > BASE_S:
            self._base, self._base_s = self._new_base()
        base, base_s = self._base, self._base_s
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._computing)

        def seconds() -> float:
            event.synchronize()
            return base_s + float(base.elapsed_time(event)) / 1e3

        return seconds

    def up(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.cuda.stream(self._coming):
            there = tuple(tensor.to(self.place, non_blocking=True) for tensor in tensors)
        self._computing.wait_stream(self._coming)
        for tensor in there:
            tensor.record_stream(self._computing)
        return there

    async def down(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        far = [tensor for tensor in tensors if tensor.is_cuda]
        if not far:
            return await HOST.down(tensors)
        for tensor in far:
            self._leaving.wait_event(self._event_of(tensor))
        with torch.cuda.stream(self._leaving):
            here = tuple(
                self._copy(tensor) if tensor.is_cuda else tensor.contiguous() for tensor in tensors
            )
            arrived = torch.cuda.Event(blocking=True)
            arrived.record(self._leaving)
        async with self._turn:
            await self._passed(arrived)
        return here

    def _event_of(self, tensor: Tensor) -> torch.cuda.Event:
        """The event after the work that made a tensor; if unknown, after all queued work."""
        made: torch.cuda.Event | None = self._made.get(_owner(tensor))
        return made or self._computing.record_event()

    def _copy(self, tensor: Tensor) -> Tensor:
        here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        here.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._leaving)
        return here

    async def _passed(self, event: torch.cuda.Event) -> None:
        until_s = time.monotonic() + AWAKE_S
        while not event.query():
            if time.monotonic() > until_s:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._waiter, event.synchronize)
                return
            await asyncio.sleep(0)

    def _new_base(self) -> tuple[torch.cuda.Event, float]:
        base = torch.cuda.Event(enable_timing=True)
        base.record(self._computing)
        base.synchronize()
        return base, time.monotonic()


def choose(wanted: str, card_of: Callable[[int], int]) -> tuple[Device, str]:
    """The device of a shard process, and in words why.

    Args:
        wanted: "cpu", "cuda", or "auto" for a GPU where one can be used.
        card_of: returns the GPU of this process, given how many there are.

    Raises:
        Invalid: "cuda", and no GPU can be used.
    """
    if wanted == "cpu":
        return HOST, "the CPU, as configured"
    if why := gpu.missing():
        if wanted == "cuda":
            raise Invalid(f"device is cuda, and no GPU can be used: {why}; take device cpu or auto")
        return HOST, f"the CPU: {why}"
    card = card_of(torch.cuda.device_count())
    return Cuda(card), f"card {card}, {torch.cuda.get_device_name(card)}"


def _tensors(result: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples and lists."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple | list):
        for each in result:
            yield from _tensors(each)


def _owner(tensor: Tensor) -> Tensor:
    """The tensor that owns the memory of a view."""
    return tensor if tensor._base is None else tensor._base
