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
"""Timeout of one collective. It is for hung processes: the loss of one is noticed at once."""


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

    def sum(self, x: Tensor) -> None:
        """Replace x by its sum over all processes."""
        self._group.allreduce([x]).wait()

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

    A process that cannot go on sends a stop flag in its next collective. The others read it there
    and stop as well, so that all are in step at the next turn. The flag is an extra number at the
    end of a sum, or a sum of its own before a gather.
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

    async def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes.

        Raises:
            Cancelled: the turn was stopped, here or elsewhere.
        """
        if not self.sums:
            raise Cancelled("the turn is over")
        op = partial(self._sum, x)
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
        if self.sums:
            self._collectives.submit(self, lambda: self._sum(self._zeros(), stop=True))
        elif self.gathers:
            self._collectives.submit(self, lambda: self._agree(stop=True))

    def __enter__(self) -> "Turn":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- on the thread ---

    def _sum(self, x: Tensor, stop: bool = False) -> Tensor:
        carried = torch.cat((x.flatten(), x.new_full((1,), float(stop))))
        self._make(lambda: self._collectives.sum(carried))
        self._heed(carried[-1])
        return carried[:-1].view(x.shape)

    def _gather(self, x: Tensor) -> Tensor:
        self._agree()
        parts: list[Tensor] = []
        self._make(lambda: parts.extend(self._collectives.gather(x)))
        return torch.cat(parts, -1) if parts else x

    def _agree(self, stop: bool = False) -> Tensor:
        word = torch.tensor([float(stop)], device=self._collectives.device)
        self._make(lambda: self._collectives.sum(word))
        self._heed(word[0])
        return word

    def _make(self, collective: Callable[[], Any]) -> None:
        if self._stopped:  # while this one waited; the others do not run it any more
            raise Cancelled("another process of this shard stopped")
        collective()

    def _heed(self, word: Tensor) -> None:
        if word:
            self._stopped = True
            raise Cancelled("another process of this shard stopped")


def _group(share: Share, store: dist.Store, host: str, device: torch.device) -> Any:
    if device.type == "cuda":
        return dist.ProcessGroupNCCL(store, *share, dist.ProcessGroupNCCL.Options())
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=TIMEOUT_S)
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    return dist.ProcessGroupGloo(store, *share, options)
