"""A gateway that is acted: it says what it was asked, over a real bus, and a file that names it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from sps2.cli import ports
from sps2.common import config
from sps2.common.api import (
    ChatChunk,
    ChatDelta,
    ChatRequest,
    CompletionChoice,
    CompletionChunk,
    CompletionRequest,
    Delta,
    Usage,
)
from sps2.common.bus.peer import Server
from sps2.common.config import text as config_text
from sps2.common.messages import ClusterStatus, ListTraces, ShowCluster, Traces, TraceSummary

from .top.acts import running, status

IDS = ("cmpl-693a2a6f1c20", "chatcmpl-77aa03b9d4e1", "5d3c1f20-0b4e-4f43-9a60-000000000007")
HEAD = {"id": "cmpl-1", "created": 1, "model": "m", "system_fingerprint": "f"}


class Acted:
    """Answers a conversation with `answer`; where that ends with "!", it then waits for ever."""

    def __init__(self, answer: str, missing: str = "") -> None:
        self.answer = answer
        self.missing = missing
        self.traces = 2
        """How many of them are listed."""
        self.finish: Literal["stop", "length"] = "stop"
        self.asked: list[ChatRequest] = []
        self.completed: list[CompletionRequest] = []

    async def chat(self, request: ChatRequest) -> AsyncIterator[ChatChunk]:
        self.asked.append(request)
        for letter in self.answer.removesuffix("!"):
            yield ChatChunk(**HEAD, choices=[ChatDelta(0, Delta(content=letter))])  # type: ignore[arg-type]
        if self.answer.endswith("!"):
            await asyncio.Event().wait()
        end = ChatDelta(0, Delta(content=""), None, self.finish)
        yield ChatChunk(**HEAD, choices=[end])  # type: ignore[arg-type]
        yield ChatChunk(**HEAD, choices=[], usage=Usage(6247, len(self.answer), 9))  # type: ignore[arg-type]

    async def show_cluster(self, request: ShowCluster) -> ClusterStatus:
        return status(running(), running("prefill", 195.0, "c" * 17), missing=self.missing)

    async def list_traces(self, request: ListTraces) -> Traces:
        error = (
            "prefill-1 was lost: it was silent for 3 heartbeats, and [red] no other could take over"
        )
        last = TraceSummary(IDS[0], IDS[2], 12.0, 345.6, False, 7900, 128, 0.5)
        failed = TraceSummary(IDS[1], "", 3600.0, 61.0, False, 70, 0, error=error)
        return Traces((last, *[failed] * (self.traces - 1)))

    async def complete(self, request: CompletionRequest) -> AsyncIterator[CompletionChunk]:
        self.completed.append(request)
        whole = CompletionChoice(0, self.answer, None, self.finish)
        yield CompletionChunk(**HEAD, choices=[whole])  # type: ignore[arg-type]
        yield CompletionChunk(**HEAD, choices=[], usage=Usage(1, len(self.answer), 2))  # type: ignore[arg-type]


@contextmanager
def acted(folder: Path, answer: str, missing: str = "") -> Iterator[Acted]:
    """The gateway of the cluster of `folder`/cluster.toml, in a thread of its own."""
    cluster = config.load(port=ports.free_base(), name="acted", model="tiny")
    (folder / "cluster.toml").write_text(config_text.dump(cluster, "test"))
    made = Acted(answer, missing)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = Server([made], cluster.bus)
    try:
        asyncio.run_coroutine_threadsafe(server.start(cluster.gateway_address), loop).result()
        try:
            yield made
        finally:
            asyncio.run_coroutine_threadsafe(server.close(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
