"""Measures the way to a peer: its latency by small frames, its rate by larger ones."""

import asyncio
import itertools
import time
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.common import messages
from sps2.common.errors import PeerLost
from sps2.common.transport.frame import Frame, frame_for
from sps2.common.transport.plane import Plane

ROUNDS = 5
"""Small frames there and back, after one that opens the links."""
FIRST_BYTES, MOST_BYTES = 16 << 10, 16 << 20
ENOUGH_S = 0.02
"""How long a frame must take to show the rate; if it takes less, a larger one follows."""
GROWTH = 8
"""The next frame is at most so many times as large."""
TRIES = 3
"""So many such frames are sent, and the fastest counts: the others may have waited for a core."""
ANSWER_S = 5.0
"""How long an answer may take."""


class Way(NamedTuple):
    """The way to a peer and back: Gbit/s each way, and seconds one way."""

    sent_gbit: float
    received_gbit: float
    latency_s: float


class Pings:
    """Measures ways to peers, and answers peers that do. Used on the plane's loop.

    A ping says in `layer` how many bytes its answer shall have, and gets that with its `at`.
    """

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._answers: set[asyncio.Task[None]] = set()
        plane.serve("ping", self._answer)
        plane.serve("pong", self._take)

    async def measure(self, peer: messages.Peer) -> Way:
        """The way to a peer now.

        Raises:
            PeerLost: it is not there, or does not answer.
        """
        self._plane.introduce(peer)
        await self._round(peer.name, 0, 0)
        trip_s = min([await self._round(peer.name, 0, 0) for _ in range(ROUNDS)])
        sent = await self._rate(peer.name, trip_s, sends=True)
        received = await self._rate(peer.name, trip_s, sends=False)
        return Way(sent, received, trip_s / 2)

    async def _rate(self, peer: str, trip_s: float, *, sends: bool) -> float:
        """Gbit/s of ever larger frames, until one takes long enough."""
        nbytes = FIRST_BYTES
        while True:
            there, back = (nbytes, 0) if sends else (0, nbytes)
            took_s = inf
            for _ in range(TRIES):
                took_s = min(took_s, await self._round(peer, there, back) - trip_s)
                if took_s < ENOUGH_S:
                    break
            took_s = max(1e-6, took_s)
            if took_s >= ENOUGH_S or nbytes == MOST_BYTES:
                return nbytes * 8e-9 / took_s
            wanted = round(nbytes * max(2.0, ENOUGH_S / took_s))
            nbytes = min(wanted, GROWTH * nbytes, MOST_BYTES)

    async def _round(self, peer: str, there: int, back: int) -> float:
        """Seconds until so many bytes were there, and so many came back."""
        number = next(self._numbers)
        answered = self._waiting[number] = asyncio.get_running_loop().create_future()
        tensors = (torch.zeros(there, dtype=torch.uint8),)
        since_s = time.perf_counter()
        try:
            async with asyncio.timeout(ANSWER_S):
                frame = frame_for("ping", (), (), back, number, tensors)
                await self._plane.send(peer, frame, tensors)
                await answered
        except TimeoutError:
            why = f"{peer} does not answer on the data plane in {ANSWER_S:g} s"
            raise PeerLost(peer, why) from None
        finally:
            del self._waiting[number]
        return time.perf_counter() - since_s

    def _answer(self, source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        task = asyncio.get_running_loop().create_task(self._send(source, frame))
        self._answers.add(task)
        task.add_done_callback(self._answered)

    async def _send(self, source: str, ping: Frame) -> None:
        tensors = (torch.zeros(min(ping.layer, MOST_BYTES), dtype=torch.uint8),)
        await self._plane.send(source, frame_for("pong", (), (), 0, ping.at, tensors), tensors)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answers.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: a peer that is gone needs no answer

    def _take(self, source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        waiting = self._waiting.get(frame.at)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
