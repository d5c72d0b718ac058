"""A peer that serves OpenAI's API over HTTP: SPS2 and vLLM."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

from peers.peer import NO_FIELDS, Fields, PeerFailed, Reply
from peers.process import Process
from sps2.cli.bench.serve.http import BadAnswer, Http, events

POLL_S = 0.05


class Server:
    """Asks /v1/completions for streams, with prompts as token ids.

    Args:
        url: of the server.
        ready: the path that answers 200 once requests can be served.
        extras: what the body of each request has beyond the usual.
        start_s: how long it may take to come up.
    """

    is_server = True

    def __init__(
        self,
        process: Process,
        url: str,
        ready: str,
        extras: Fields,
        start_s: float,
    ) -> None:
        self.process = process
        self.url = url
        self.version = ""
        self._ready = ready
        self._extras = extras
        self._start_s = start_s
        self._http = Http(url, {})

    async def start(self) -> None:
        await self.process.start()
        deadline = time.perf_counter() + self._start_s
        while not await self._answers():
            if self.process.has_ended:
                raise PeerFailed(f"it ended at its start; {self.process.log_end()}")
            if time.perf_counter() > deadline:
                raise PeerFailed(f"not ready in {self._start_s:.0f} s; {self.process.log_end()}")
            await asyncio.sleep(POLL_S)
        _, body = await self._http.get("/version")
        self.version = json.loads(body)["version"]

    async def ask(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        replies: Sequence[Reply],
        fields: Fields = NO_FIELDS,
    ) -> None:
        body = {
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._extras,
            **fields,
        }
        try:
            async with asyncio.TaskGroup() as group:
                for prompt, reply in zip(prompts, replies, strict=True):
                    group.create_task(self._stream(body | {"prompt": prompt}, tokens, reply))
        except* (OSError, EOFError, BadAnswer) as errors:
            first = errors.exceptions[0]
            raise PeerFailed(
                f"{type(first).__name__}: {first}; {self.process.log_end()}"
            ) from errors
        except* PeerFailed as errors:
            raise errors.exceptions[0] from None

    async def stop(self) -> None:
        await self._http.close()
        await self.process.stop()

    async def _stream(self, body: dict[str, object], tokens: int, reply: Reply) -> None:
        content = json.dumps(body).encode()
        reply.sent_s = time.perf_counter()
        async with self._http.post("/v1/completions", content) as answer:
            if answer.status != 200:
                raise PeerFailed(f"status {answer.status}: {(await answer.body()).decode()}")
            async for data in events(answer.chunks()):
                if data != b"[DONE]":
                    _take(json.loads(data), reply)
        if len(reply.stamps_s) != tokens:
            raise PeerFailed(f"{len(reply.stamps_s)} tokens came of {tokens}")

    async def _answers(self) -> bool:
        try:
            status, _ = await self._http.get(self._ready)
            return status == 200
        except (OSError, EOFError, BadAnswer):
            return False


def _take(event: dict[str, Any], reply: Reply) -> None:
    """Note the tokens of one event.

    An event has the ids that vLLM lists, else one token; one without a text of its own shows with
    the next, which the usage at the end tells.
    """
    if "error" in event:
        raise PeerFailed(f"the stream ended with {event['error']}")
    for choice in event["choices"]:
        ids = choice.get("token_ids")
        reply.arrive(1 if ids is None else len(ids), choice["text"])
    if usage := event.get("usage"):
        reply.arrive(usage["completion_tokens"] - len(reply.stamps_s))
