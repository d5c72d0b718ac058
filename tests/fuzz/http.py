"""The gateway's HTTP listener: raw requests, and the bodies of every protocol."""

import asyncio
import json
import random
import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

from ..services.gateway.conftest import opened, write_tiny
from . import mutate
from .target import Pieces, Target, changed_json

SILENCE_S = 0.05
"""A request that gets no answer for so long is over for its client."""
HI = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
FUNCTION = {
    "name": "look",
    "description": "d",
    "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
}
TOOL = {"type": "function", "function": FUNCTION}
BODIES: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {
            "model": "tiny",
            "messages": HI,
            "max_tokens": 5,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.5,
            "top_p": 0.9,
            "stop": ["x"],
            "logprobs": True,
            "top_logprobs": 2,
            "logit_bias": {"65": 3},
            "tools": [TOOL],
            "tool_choice": "auto",
            "n": 2,
            "seed": 3,
            "sps2": {"sp_degree": 1},
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [
                *HI,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "c",
                            "type": "function",
                            "function": {"name": "look", "arguments": "{}"},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "t"}]},
            ],
            "max_completion_tokens": 3,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "object"}},
            },
            "reasoning_effort": "low",
            "user": "u",
        },
    ),
    (
        "/v1/completions",
        {
            "prompt": ["a", "b"],
            "max_tokens": 3,
            "echo": True,
            "logprobs": 2,
            "suffix": None,
            "best_of": 1,
            "stream": False,
            "ignore_eos": True,
            "prompt_logprobs": 1,
        },
    ),
    ("/v1/completions", {"prompt": [65, 66, 67], "max_tokens": 2, "guided_regex": "[a-z]+"}),
    (
        "/v1/messages",
        {
            "model": "tiny",
            "max_tokens": 4,
            "system": [{"type": "text", "text": "s"}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
            "tools": [{"name": "look", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "auto"},
            "stream": True,
            "thinking": {"type": "disabled"},
            "stop_sequences": ["q"],
        },
    ),
    (
        "/v1/messages/count_tokens",
        {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]},
    ),
    (
        "/v1/responses",
        {
            "model": "tiny",
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
            "instructions": "i",
            "max_output_tokens": 4,
            "stream": True,
            "store": True,
            "tools": [{"type": "function", "name": "look", "parameters": {"type": "object"}}],
            "text": {"format": {"type": "text"}},
            "previous_response_id": None,
        },
    ),
    (
        "/api/chat",
        {
            "model": "tiny",
            "messages": HI,
            "stream": False,
            "options": {"num_predict": 3, "stop": ["x"]},
            "format": "json",
            "keep_alive": "5m",
        },
    ),
    (
        "/api/generate",
        {
            "model": "tiny",
            "prompt": "a",
            "options": {"num_predict": 2, "seed": 1},
            "context": [1, 2],
        },
    ),
    ("/api/show", {"model": "tiny", "verbose": True}),
    ("/api/embed", {"model": "tiny", "input": ["a", "b"], "truncate": True}),
    (
        "/v1/embeddings",
        {"model": "tiny", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 4},
    ),
    ("/v1/estimate", {"messages": HI, "max_tokens": 4}),
    ("/tokenize", {"prompt": "a", "add_special_tokens": True}),
    ("/detokenize", {"tokens": [65, 66]}),
    (
        "/v1/batches",
        {
            "input_file_id": "file-1",
            "endpoint": "/v1/completions",
            "completion_window": "24h",
            "metadata": {"a": "b"},
        },
    ),
]
PATHS = (
    *("/v1/models", "/v1/models/tiny", "/health", "/ready", "/version", "/metrics", "/docs"),
    *("/openapi.json", "/api/tags", "/api/ps", "/api/version", "/v1/files", "/v1/batches?limit=2"),
    *("/v1/files/file-1/content", "/v1/responses/resp_1", "/v1/batches/batch_1/cancel"),
)
BATCH = (
    b'{"custom_id":"a","method":"POST","url":"/v1/completions",'
    b'"body":{"prompt":"a","max_tokens":2}}\n'
)
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
    b'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n'
    b"Content-Type: application/jsonl\r\n\r\n" + BATCH * 2 + b"\r\n--b--\r\n"
)


def request(
    path: str,
    body: bytes = b"",
    kind: str = "application/json",
    method: str = "POST",
    more: str = "",
) -> bytes:
    """A request after whose answer the connection ends."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n{more}"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


class Gateway(Target):
    """A gateway with real sockets; the scheduler and the shard behind it play their parts."""

    said = ()

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._model = folder / "tiny"
        write_tiny(self._model)

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        self._door = await self._stack.enter_async_context(opened(self._model))
        self._port = int(self._door.url.rpartition(":")[2])
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def answered(self, pieces: Pieces, silence_s: float | None) -> bytes:
        """What the gateway sends; None waits until it ends the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        data = b""
        try:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            try:
                while more := await asyncio.wait_for(reader.read(1 << 16), silence_s):
                    data += more
            except TimeoutError:
                writer.write_eof()
                data += await reader.read()
        except OSError:  # it has hung up already
            pass
        finally:
            writer.close()
        for status in re.findall(rb"HTTP/1\.[01] (\d{3})", data):
            assert status < b"500" or status == b"503", data[:600].decode(errors="replace")
        assert b'"internal_error"' not in data, data[-600:].decode(errors="replace")
        play = self._door.play
        for kept in (play.submitted, play.cancelled, play.finished):
            kept.clear()
        return data

    async def check(self) -> None:
        """Nothing is left in work, and an ordinary request is answered."""
        while self._door.scheduler.calls:
            await asyncio.sleep(0.01)
        body = json.dumps({"prompt": "a", "max_tokens": 3}).encode()
        data = await self.answered([request("/v1/completions", body)], None)
        assert data.startswith(b"HTTP/1.1 200"), data[:300]


class Http(Gateway):
    """Bytes that are nearly HTTP."""

    name = "http"

    def case(self, dice: random.Random) -> Pieces:
        if dice.random() < 0.5:
            path, body = dice.choice(BODIES)
            data = request(path, json.dumps(body).encode())
        elif dice.random() < 0.3:
            data = request("/v1/files", FORM, "multipart/form-data; boundary=b")
        else:
            method = dice.choice(("GET", "HEAD", "OPTIONS", "DELETE", "POST", "PUT", "CONNECT"))
            data = request(dice.choice(PATHS), method=method)
        head, _, body_bytes = data.partition(b"\r\n\r\n")
        rows = head.split(b"\r\n")
        more = (
            *(b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Upgrade: h2c"),
            *(b"Content-Encoding: gzip", b"Idempotency-Key: a", b"Last-Event-ID: a-1"),
            *(b"Connection: upgrade, HTTP2-Settings", b"Host: [::1", b"Content-Length: -1"),
            *(
                b"Authorization: Bearer \xff",
                b"X-Request-Id: " + b"a" * 500,
                b"Cookie: " + b"b" * 9000,
            ),
            *(b"traceparent: 00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01", b"traceparent: x"),
            *(
                b"Origin: null",
                b"Content-Type: multipart/form-data",
                b"Content-Type: text/plain;\xff",
            ),
        )
        for _ in range(dice.choice((0, 1, 1, 2))):
            rows.insert(dice.randrange(1, len(rows) + 1), dice.choice(more))
        data = b"\r\n".join(rows) + b"\r\n\r\n" + body_bytes
        if dice.random() < 0.7:
            data = mutate.changed(dice, data)
        cut = dice.randrange(len(data) + 1)
        return [data[:cut], data[cut:]] if dice.random() < 0.3 else [data]

    async def feed(self, pieces: Pieces) -> None:
        await self.answered(pieces, SILENCE_S)


class HttpBodies(Gateway):
    """Whole requests whose bodies are changed."""

    name = "http-bodies"

    def case(self, dice: random.Random) -> Pieces:
        if dice.random() < 0.12:
            form = (
                mutate.changed(dice, FORM)
                if dice.random() < 0.6
                else FORM.replace(BATCH, changed_json(dice, BATCH) + b"\n", 1)
            )
            return [request("/v1/files", form, "multipart/form-data; boundary=b")]
        path, body = dice.choice(BODIES)
        text = changed_json(dice, json.dumps(body).encode())
        more = dice.choice(("", "", "", "Idempotency-Key: k\r\n"))
        return [request(path, text, more=more)]

    async def feed(self, pieces: Pieces) -> None:
        await self.answered(pieces, None)
