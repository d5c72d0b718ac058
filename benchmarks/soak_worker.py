"""One process of the transport soak: talks to all others, checks what comes, reports figures.

Driven by lines of JSON on its standard input; answers on its standard output.
"""

import asyncio
import json
import os
import random
import sys
from contextlib import suppress
from statistics import median
from time import monotonic, process_time
from typing import Any

import msgspec
import psutil
import torch
import uvloop
from soak_gauges import Budget, Clock, Gaps, Stream
from torch import Tensor

from sps2.common.errors import Cancelled, PeerLost
from sps2.common.messages import Peer
from sps2.common.transport.frame import Frame, frame_for
from sps2.common.transport.plane import Plane

SMALLEST, LARGEST = 256, 64 << 20
STREAMS = 2
"""Independent streams of frames per peer and direction."""

BUDGET_BYTES = 64 << 20
"""Sent by one process and not yet acknowledged, at most."""


CANCEL_SENDS, CANCEL_RECEIVES, REUSED = 0.05, 0.05, 0.10


class Worker:
    """Sends to and receives from every peer that it is told of.

    Frames are slices of `pattern`, which all processes make from one seed; a second part carries
    [stream's number of the frame, offset of the slice, frames cancelled so far].
    """

    def __init__(self, plane: Plane, seed: int) -> None:
        self.plane = plane
        self.random = random.Random(seed)
        generator = torch.Generator().manual_seed(1)
        self.pattern = torch.randint(
            0, 256, (LARGEST + 4096,), dtype=torch.uint8, generator=generator
        )
        self.streams: dict[tuple[str, int], Stream] = {}
        self.peers: dict[str, asyncio.Task[None]] = {}
        self.inbox = plane.open("soak", 0)
        self.sending = asyncio.Event()
        self.clock = Clock()
        self.gaps = Gaps(self.clock)
        self.budget = Budget(BUDGET_BYTES)
        self.messages = self.payload_bytes = self.wrong = 0
        self.cancelled_sends = self.cancelled_receives = 0
        self.stream_gap = 0.0
        self.echoed: asyncio.Queue[int] = asyncio.Queue()
        plane.serve("state", self.acknowledged)
        plane.serve("probe", self.echo)
        plane.on_lost(self.lose)

    def lose(self, peer: str) -> None:
        self.clock.last_kill = self.clock.now
        for layer in range(STREAMS):
            if stream := self.streams.get((peer, layer)):
                stream.acknowledge(sys.maxsize)

    def meet(self, peer: Peer) -> None:
        self.clock.last_kill = self.clock.now  # it starts on the same cores
        self.plane.introduce(peer)
        self.peers[peer.name] = asyncio.create_task(self.talk(peer.name))

    async def talk(self, peer: str) -> None:
        """Both directions with one peer, until it is lost."""
        async with asyncio.TaskGroup() as tasks:
            for layer in range(STREAMS):
                stream = self.streams[peer, layer] = Stream(self.clock, self.budget)
                tasks.create_task(self.send_to(peer, layer, stream))
                tasks.create_task(self.receive_from(peer, layer))
        for layer in range(STREAMS):
            stream = self.streams.pop((peer, layer))
            self.stream_gap = max(self.stream_gap, stream.gaps.longest)
        del self.peers[peer]

    async def send_to(self, peer: str, layer: int, stream: Stream) -> None:
        number = cancelled = 0
        with suppress(PeerLost, Cancelled):
            while True:
                if not self.sending.is_set():
                    await self.sending.wait()
                    stream.gaps.restart()
                size = int(SMALLEST * (LARGEST / SMALLEST) ** self.random.random())
                await self.budget.take(size)
                number += 1
                offset = self.random.randrange(4096)
                payload = self.pattern[offset : offset + size]
                cancel = self.random.random() < CANCEL_SENDS
                reuse = cancel or self.random.random() < REUSED
                if reuse:
                    payload = payload.clone()
                tensors = (payload, torch.tensor([number, offset, cancelled]))
                frame = frame_for("kv", ("soak",), (0,), layer, 0, tensors)
                stream.unacknowledged[number] = size
                sending = asyncio.ensure_future(self.plane.send(peer, frame, tensors))
                if cancel:
                    await asyncio.sleep(self.random.random() * size / 1e9)
                    sending.cancel()
                try:
                    await sending
                except asyncio.CancelledError:
                    cancelled += 1
                    self.cancelled_sends += 1
                    stream.give_up(number)
                if reuse:
                    payload.zero_()
                self.progress(stream)
        stream.acknowledge(sys.maxsize)

    async def receive_from(self, peer: str, layer: int) -> None:
        last = missing = 0
        with suppress(PeerLost, Cancelled):
            while True:
                receiving = asyncio.ensure_future(self.inbox.recv("kv", layer, 0, peer))
                if self.random.random() < CANCEL_RECEIVES:
                    await asyncio.sleep(self.random.random() * 0.005)
                    receiving.cancel()
                try:
                    payload, label = await receiving
                except asyncio.CancelledError:
                    self.cancelled_receives += 1
                    continue
                number, offset, cancelled = label.tolist()
                missing += number - last - 1
                if number <= last or missing > cancelled:
                    self.complain(f"{peer}: frame {number} after {last}, {cancelled} cancelled")
                if not torch.equal(payload, self.pattern[offset : offset + payload.numel()]):
                    self.complain(f"{peer}: frame {number} of {payload.numel()} bytes is wrong")
                last = number
                self.messages += 1
                self.payload_bytes += payload.numel()
                self.gaps.progress()
                del payload
                tensors = (torch.tensor([layer, number]),)
                frame = frame_for("state", ("soak",), (0,), 0, 0, tensors)
                await self.plane.send(peer, frame, tensors)

    def complain(self, what: str) -> None:
        self.wrong += 1
        print(what, file=sys.stderr, flush=True)

    def progress(self, stream: Stream) -> None:
        self.gaps.progress()
        stream.gaps.progress()

    def acknowledged(self, source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        layer, number = tensors[0].tolist()
        if stream := self.streams.get((source, layer)):
            stream.acknowledge(number)

    def echo(self, source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        """Answer a probe at step 0 with one at step 1: the same if it is small, else one byte."""
        if frame.at == 1:
            self.echoed.put_nowait(frame.nbytes)
            return
        answer = tensors if frame.nbytes <= 4096 else (tensors[0][:1],)
        reply = frame_for("probe", ("soak",), (0,), 0, 1, answer)
        task = asyncio.ensure_future(self.plane.send(source, reply, answer))
        task.add_done_callback(lambda done: done.exception())

    # --- what the parent asks for ---

    async def speed(self, peer: str) -> dict[str, float]:
        """Round trip of 1 KiB, and rate of 16 MiB frames, on quiet links."""

        async def probe(tensor: Tensor, times: int, at_once: int) -> list[float]:
            durations = []
            frame = frame_for("probe", ("soak",), (0,), 0, 0, (tensor,))
            for _ in range(times):
                started = monotonic()
                for _ in range(at_once):
                    await self.plane.send(peer, frame, (tensor,))
                for _ in range(at_once):
                    await self.echoed.get()
                durations.append(monotonic() - started)
            return durations

        small, large = torch.zeros(1024, dtype=torch.uint8), torch.ones(16 << 20, dtype=torch.uint8)
        await probe(small, 200, 1)
        trips = sorted(await probe(small, 2000, 1))
        await probe(large, 2, 4)
        rates = [8 * large.numel() / took / 1e9 for took in await probe(large, 8, 8)]
        return {
            "rtt_1KiB_median_us": round(median(trips) * 1e6, 1),
            "rtt_1KiB_p99_us": round(trips[int(len(trips) * 0.99)] * 1e6, 1),
            "16MiB_GB_per_s": round(median(rates), 2),
        }

    async def idle(self, seconds: float) -> dict[str, float]:
        """Share of a core used while receives are pending and nothing comes."""
        self.sending.clear()
        self.clock.stop()
        await asyncio.sleep(3)
        used = process_time()
        await asyncio.sleep(seconds)
        return {"idle_cpu_percent": round((process_time() - used) / seconds * 100, 3)}

    def report(self) -> dict[str, float]:
        running = self.sending.is_set()
        for stream in self.streams.values():
            worst = stream.gaps.worst(running=running)
            self.stream_gap = max(self.stream_gap, worst)
        process = psutil.Process()
        return {
            "messages": self.messages,
            "bytes": self.payload_bytes,
            "wrong": self.wrong,
            "cancelled_sends": self.cancelled_sends,
            "cancelled_receives": self.cancelled_receives,
            "longest_gap_s": round(self.gaps.worst(running=running), 3),
            "longest_gap_after_kill_s": round(self.gaps.longest_after_kill, 3),
            "longest_stream_gap_s": round(self.stream_gap, 3),
            "loop_lag_s": round(self.clock.loop_lag, 3),
            "rescues": self.plane.counters["ucx_rescues"],
            "dropped": self.plane.counters["frames_dropped"],
            "bad": self.plane.counters["bad_frames"] + self.plane.counters["handler_errors"],
            "rss_bytes": process.memory_info().rss,
            "fds": process.num_fds(),
            "peers": len(self.peers),
        }


async def main(name: str, backend: str, seed: int) -> None:
    torch.set_num_threads(1)
    plane = Plane(name, backend)  # type: ignore[arg-type]
    await plane.start()
    worker = Worker(plane, seed)
    worker.clock.start()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    peer = msgspec.to_builtins(plane.peer)
    answer: dict[str, Any] = {"peer": peer, "pid": os.getpid()}
    while True:
        print(json.dumps(answer), flush=True)
        line = await reader.readline()
        if not line:
            break
        command = json.loads(line)
        answer = {}
        match command["do"]:
            case "meet":
                worker.meet(msgspec.convert(command["peer"], Peer))
            case "forget":
                worker.lose(command["name"])
                plane.forget(command["name"])
            case "go":
                worker.gaps.restart()
                worker.clock.loop_lag = 0.0
                worker.sending.set()
            case "report":
                answer = worker.report()
            case "speed":
                answer = await worker.speed(command["name"])
            case "idle":
                answer = await worker.idle(command["seconds"])
    worker.clock.stop()
    await plane.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
