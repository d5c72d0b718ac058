"""A gateway that is acted: it says what it was asked, over a real bus, and a file that names it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

from sps2.cli import ports
from sps2.common import config, config_text
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
from sps2.common.rpc import Server

HEAD = {"id": "cmpl-1", "created": 1, "model": "m", "system_fingerprint": "f"}


class Acted:
    """Answers a conversation with `answer`; where that ends with "!", it then waits for ever."""

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.asked: list[ChatRequest] = []
        self.completed: list[CompletionRequest] = []

    async def chat(self, request: ChatRequest) -> AsyncIterator[ChatChunk]:
        self.asked.append(request)
        for letter in self.answer.removesuffix("!"):
            yield ChatChunk(**HEAD, choices=[ChatDelta(0, Delta(content=letter))])  # type: ignore[arg-type]
        if self.answer.endswith("!"):
            await asyncio.Event().wait()
        yield ChatChunk(**HEAD, choices=[], usage=Usage(6247, len(self.answer), 9))  # type: ignore[arg-type]

    async def complete(self, request: CompletionRequest) -> AsyncIterator[CompletionChunk]:
        self.completed.append(request)
        yield CompletionChunk(**HEAD, choices=[CompletionChoice(0, self.answer)])  # type: ignore[arg-type]
        yield CompletionChunk(**HEAD, choices=[], usage=Usage(1, 1, 2))  # type: ignore[arg-type]


@contextmanager
def acted(folder: Path, answer: str) -> Iterator[Acted]:
    """The gateway of the cluster of `folder`/cluster.toml, in a thread of its own."""
    cluster = config.load(port=ports.free_base(), name="acted", model="tiny")
    (folder / "cluster.toml").write_text(config_text.dump(cluster, "test"))
    made = Acted(answer)
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
