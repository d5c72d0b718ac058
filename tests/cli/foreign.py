"""A server of OpenAI's API that is not ours: it streams words at a fixed pace, on a real socket."""

import asyncio
import json
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"


@dataclass
class Foreign:
    """What the server does, and what it was asked.

    first_s: until the first token. gap_s: between tokens. error: every request whose prompt has
        `bad_tokens` tokens is refused with this status and message. breaks_after: tokens after
        which it drops the connection. late_error: what it sends instead of the third token.
    """

    first_s: float = 0.02
    gap_s: float = 0.005
    model: str = "foreign"
    bad_tokens: int = 0
    error: tuple[int, str] = (400, "too long for me")
    breaks_after: int | None = None
    late_error: str = ""
    has_usage: bool = True
    is_streaming: bool = True
    framing: str = "chunked"
    lists_models: bool = True
    keeps: bool = True
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    connections: int = 0
    in_work: int = 0
    most_in_work: int = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while request := await _request(reader):
                await self._answer(*request, writer)
                await writer.drain()
                if not self.keeps:
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(
        self, path: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        if path.endswith("/models"):
            if self.lists_models:
                _whole(writer, 200, {"data": [{"id": self.model}]})
            else:
                _whole(writer, 404, {"detail": "Not Found"})
            return
        asked = json.loads(body)
        self.paths.append(path)
        self.bodies.append(asked)
        self.headers.append(headers)
        self.at_s.append(asyncio.get_running_loop().time())
        prompt = asked.get("prompt", "")
        if self.bad_tokens and len(prompt) == self.bad_tokens:
            _whole(writer, self.error[0], {"error": {"message": self.error[1]}})
            return
        if not self.is_streaming:
            _whole(writer, 200, {"choices": [{"text": "all at once"}]})
            return
        self.in_work += 1
        self.most_in_work = max(self.most_in_work, self.in_work)
        try:
            await self._stream(asked, writer)
        finally:
            self.in_work -= 1

    async def _stream(self, asked: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        chunked = self.framing == "chunked"
        framing = "transfer-encoding: chunked" if chunked else "connection: close"
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {EVENTS}\r\n{framing}\r\n\r\n".encode())
        async for event in self._events(asked):
            data = event.encode()
            # in two pieces, and with the next one's beginning, as the network pleases
            for piece in (data[:7], data[7:]) if chunked else (data,):
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            await writer.drain()
        if chunked and self.breaks_after is None:
            writer.write(b"0\r\n\r\n")
        else:
            writer.close()

    async def _events(self, asked: dict[str, Any]) -> AsyncIterator[str]:
        is_chat = "messages" in asked
        tokens = asked.get("max_tokens") or asked.get("max_completion_tokens") or 16
        yield ": hello\n\n"
        if is_chat:
            yield _event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
        await asyncio.sleep(self.first_s)
        for index in range(tokens):
            if index:
                await asyncio.sleep(self.gap_s)
            if self.breaks_after == index:
                return
            if self.late_error and index == 2:
                yield _event(error={"message": self.late_error})
                return
            said = f" w{index}"
            choice = {"delta": {"content": said}} if is_chat else {"text": said}
            yield _event(choices=[{"index": 0, **choice}])
        if self.has_usage and asked.get("stream_options", {}).get("include_usage"):
            prompt = asked.get("prompt") or json.dumps(asked.get("messages"))
            sizes = {"prompt_tokens": len(prompt), "completion_tokens": tokens}
            yield _event(choices=[], usage=sizes | {"prompt_tokens_details": {"cached_tokens": 1}})
        yield "data: [DONE]\n\n"


def _event(**fields: object) -> str:
    return f"data: {json.dumps(fields)}\n\n"


def _whole(writer: asyncio.StreamWriter, status: int, found: object) -> None:
    body = json.dumps(found).encode()
    head = f"HTTP/1.1 {status} So\r\ncontent-type: {JSON}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


async def _request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes] | None:
    first = (await reader.readline()).decode()
    if not first:
        return None
    headers = {}
    while line := (await reader.readline()).decode().strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return first.split(" ")[1], headers, body


@contextmanager
def serving(
    foreign: Foreign, tls: ssl.SSLContext | None = None, port: int = 0
) -> Iterator[Foreign]:
    """Serve in a thread of its own while the block runs."""
    loop = asyncio.new_event_loop()
    up = threading.Event()
    stop = asyncio.Event()

    async def serve() -> None:
        server = await asyncio.start_server(foreign.connected, "127.0.0.1", port, ssl=tls)
        scheme = "http" if tls is None else "https"
        foreign.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        up.set()
        await stop.wait()
        server.close()

    async def all_of_it() -> None:
        await serve()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(all_of_it()))
    thread.start()
    up.wait()
    try:
        yield foreign
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
