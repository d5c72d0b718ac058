"""Sums and gathers among the processes of a tensor-parallel shard, in the same order at all."""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sps2.common.errors import Cancelled, PeerLost
from sps2.common.model.share import Share

Op = Callable[[], Tensor]

CPU = torch.device("cpu")

TIMEOUT_S = 1800.0
"""Timeout of one collective. It is for hung processes: gloo notices the loss of one at once. With
NCCL the others wait on the GPU, until the leader's heartbeats are missed."""
LAG = 8
"""Sums of a GPU after which the stop flag of a sum is read: reading it at once would make the host
wait for every sum."""


class Collectives:
    """One process's side of the collectives; the `share.size` processes never change.

    Collectives run on their own thread, so that neither event loop nor compute thread waits for
    the other processes: these may, through other shards, be waiting for work of this one.

    Args:
        store: through which the processes find each other.
        host: address of this machine that gloo binds.
        broken: called on the thread when another process is gone; no collective works after that.
        device: of the tensors: the CPU uses gloo, a GPU uses NCCL, with one process per GPU.
    """

    def __init__(
        self,
        share: Share,
        store: dist.Store,
        host: str = "127.0.0.1",
        broken: Callable[[Exception], None] = lambda _: None,
        device: torch.device = CPU,
    ) -> None:
        self.share = share
        self.device = device
        self.lag = LAG if device.type == "cuda" else 0
        self._broken = broken
        self._group = _group(share, store, host, device)
        self._lock = threading.Lock()
        self._turns: deque[Turn] = deque()
        self._queue: queue.SimpleQueue[tuple[Op, Future[Tensor]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="collectives", daemon=True).start()

    def turn(self, sums: int, gathers: int, shape: tuple[int, ...], dtype: torch.dtype) -> "Turn":
        """Reserve `sums` sums of tensors of `shape`, then `gathers` gathers, for one forward.

        Turns follow the order of these calls, which must be the same in all processes.
        """
        zeros = partial(torch.zeros, shape, dtype=dtype, device=self.device)
        turn = Turn(self, sums, gathers, zeros)
        with self._lock:
            self._turns.append(turn)
        return turn

    def least(self, number: int) -> int:
        """The smallest of the processes' numbers. Blocks. All must call it, before any turn."""
        numbers = torch.tensor([number], dtype=torch.int64, device=self.device)
        self._group.allreduce([numbers], dist.ReduceOp.MIN).wait()
        return int(numbers)

    def close(self) -> None:
        """End the thread once it has finished its queue."""
        self._queue.put(None)

    # --- for turns ---

    def submit(self, turn: "Turn", op: Op, *, sums: int = 0, gathers: int = 0) -> Future[Tensor]:
        """Run `op` on the thread when `turn` is due; `sums` and `gathers` remain after it."""
        future: Future[Tensor] = Future()
        with self._lock:
            turn.sums, turn.gathers = sums, gathers
            turn.waiting.append((op, future))
            while self._turns:
                first = self._turns[0]
                while first.waiting:
                    self._queue.put(first.waiting.popleft())
                if first.sums or first.gathers:
                    break
                self._turns.popleft()
        return future

    def sum(self, *tensors: Tensor) -> None:
        """Replace tensors of one dtype by their sums over all processes."""
        self._group.allreduce_coalesced(list(tensors)).wait()

    def gather(self, x: Tensor) -> list[Tensor]:
        """The tensors of all processes by rank, at rank 0; empty at others."""
        options = dist.GatherOptions()
        options.rootRank = 0
        parts = [] if self.share.rank else [torch.empty_like(x) for _ in range(self.share.size)]
        self._group.gather([parts] if parts else [], [x], options).wait()
        return parts

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            op, future = item
            wanted = future.set_running_or_notify_cancel()  # runs anyway: the others take part
            try:
                result = op()
            except Cancelled as stopped:
                if wanted:
                    future.set_exception(stopped)
            except Exception as error:
                if wanted:
                    future.set_exception(PeerLost("another process of this shard", str(error)))
                self._broken(error)
            else:
                if wanted:
                    future.set_result(result)


class Turn:
    """The collectives of one forward: all processes run the same ones, or stop at the same one.

    Used on one event loop.

    A process that cannot go on sends a stop flag with its next collectives. All read the flags at
    the same places and stop there, so that all are in step at the next turn: `lag` sums later, but
    before a gather, and before the last result of the turn. The flag is summed beside a sum, or
    alone before a gather. What a sum returned after a flag that is not read yet is of no use.
    """

    def __init__(
        self, collectives: Collectives, sums: int, gathers: int, zeros: Callable[[], Tensor]
    ) -> None:
        self.sums = sums
        self.gathers = gathers
        """`sums` and `gathers` that remain."""
        self.waiting: deque[tuple[Op, Future[Tensor]]] = deque()
        self._collectives = collectives
        self._zeros = zeros
        self._stopped = False
        """Whether any process has stopped the turn; used on the thread only."""
        self._unread: deque[Callable[[], bool]] = deque()
        """Flags of the last sums; used on the thread only."""

    async def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes, in the memory of x.

        Raises:
            Cancelled: the turn was stopped, here or elsewhere.
        """
        if not self.sums:
            raise Cancelled("the turn is over")
        op = partial(self._sum, x, ends=self.sums == 1 and not self.gathers)
        made = self._collectives.submit(self, op, sums=self.sums - 1, gathers=self.gathers)
        return await asyncio.wrap_future(made)

    async def gather(self, x: Tensor) -> Tensor:
        """At rank 0 the tensors of all processes, joined in the last dimension; x elsewhere.

        Raises:
            Cancelled: the turn was stopped, here or elsewhere.
        """
        if self.sums or not self.gathers:
            raise Cancelled("the turn is over")
        op = partial(self._gather, x)
        made = self._collectives.submit(self, op, gathers=self.gathers - 1)
        return await asyncio.wrap_future(made)

    def stop(self) -> None:
        """Give up the remaining collectives, if there are any."""
        if self.sums or self.gathers:
            self._collectives.submit(self, partial(self._stop, self.sums, self.gathers))

    def __enter__(self) -> "Turn":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- on the thread ---

    def _sum(self, x: Tensor, stop: bool = False, ends: bool = False) -> Tensor:
        """Args: ends: whether the turn ends here."""
        flag = x.new_full((1,), float(stop))
        self._make(lambda: self._collectives.sum(x, flag))
        self._unread.append(_read_later(flag))
        self._heed(0 if ends else self._collectives.lag)
        return x

    def _gather(self, x: Tensor) -> Tensor:
        self._agree()
        parts: list[Tensor] = []
        self._make(lambda: parts.extend(self._collectives.gather(x)))
        return torch.cat(parts, -1) if parts else x

    def _agree(self, stop: bool = False) -> Tensor:
        flag = torch.tensor([float(stop)], device=self._collectives.device)
        self._make(lambda: self._collectives.sum(flag))
        self._unread.append(_read_later(flag))
        self._heed(0)
        return flag

    def _stop(self, sums: int, gathers: int) -> Tensor:
        """Take part with stop flags until the others have read one."""
        for left in reversed(range(sums)):
            self._sum(self._zeros(), stop=True, ends=not left and not gathers)
        return self._agree(stop=True)

    def _make(self, collective: Callable[[], Any]) -> None:
        if self._stopped:  # while this one waited; the others do not run it any more
            raise Cancelled("another process of this shard stopped")
        collective()

    def _heed(self, unread: int) -> None:
        """Read flags until so many are left.

        Raises:
            Cancelled: one is set.
        """
        while len(self._unread) > unread:
            if self._unread.popleft()():
                self._stopped = True
                raise Cancelled("another process of this shard stopped")


def _read_later(flag: Tensor) -> Callable[[], bool]:
    """Copy a flag to the host; returns a function that waits for the copy alone, and reads it."""
    if flag.device.type != "cuda":
        return lambda: bool(flag)
    here = torch.empty(1, dtype=flag.dtype, pin_memory=True)
    here.copy_(flag, non_blocking=True)
    arrived = torch.cuda.Event(blocking=True)
    arrived.record()

    def read() -> bool:
        arrived.synchronize()
        return bool(here)

    return read


def _group(share: Share, store: dist.Store, host: str, device: torch.device) -> Any:
    if device.type == "cuda":
        wanted = dist.ProcessGroupNCCL.Options()
        wanted._timeout = timedelta(seconds=TIMEOUT_S)
        return dist.ProcessGroupNCCL(store, *share, wanted)
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=TIMEOUT_S)
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    return dist.ProcessGroupGloo(store, *share, options)
