"""Where a process computes, and how tensors get there and away beside the arithmetic.

On a GPU everything is computed on its default stream, whichever thread asks for it: what comes
later sees what came before. Tensors travel on two streams of their own, one each way, which wait
for events: for what made a tensor, not for what is computed after it.
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
"""A moment: in seconds of `time.monotonic`, once it has passed."""

AHEAD = 2
"""Pieces of arithmetic that are queued on a GPU behind the one that runs: it never waits for the
next, and no more than these are in vain when a request ends."""
AWAKE_S = 1e-4
"""For how long an event is asked again and again, before a thread waits for it."""
BASE_S = 60.0
"""How long times by CUDA events, 32-bit floats, are counted from the same one."""


class Device(Protocol):
    """One process's; used on its data loop, `compute` and `mark` on any thread."""

    place: torch.device

    def compute(self, work: Callable[[], Result]) -> Result:
        """Do a piece of arithmetic; its tensors may be used at once, wherever they are computed.

        It returns tensors of its own: nothing else writes to their memory.
        """
        ...

    def mark(self) -> Mark:
        """The moment at which everything that was computed so far is done."""
        ...

    def up(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same tensors where this process computes; they may be used at once."""
        ...

    async def down(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same tensors on the host, contiguous, once they are there.

        Calls end in their order.
        """
        ...


class Host:
    """The CPU: nothing has to move, and what is returned is done."""

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
    """A GPU. What leaves it, or comes, passes through pinned memory of the host.

    Args:
        card: its number, of those that CUDA shows this process.
    """

    def __init__(self, card: int = 0) -> None:
        self.place = torch.device("cuda", card)
        self._computing = torch.cuda.default_stream(self.place)
        self._leaving = torch.cuda.Stream(self.place)
        self._coming = torch.cuda.Stream(self.place)
        self._queued: deque[torch.cuda.Event] = deque()
        self._made = WeakTensorKeyDictionary()
        """What made a tensor is over at this event."""
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
        """The end of the piece that made a tensor; if it is not known, of all that is queued."""
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
    """The device of a process of a shard, and in words why.

    Args:
        wanted: "cpu", "cuda", or "auto" for a GPU where one can be used.
        card_of: which card a process takes of so many.

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
    """Those in tuples and lists, however deep."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple | list):
        for each in result:
            yield from _tensors(each)


def _owner(tensor: Tensor) -> Tensor:
    """Whose memory a view looks at."""
    return tensor if tensor._base is None else tensor._base
