"""The ways of asking a server: OpenAI's API over HTTP, and the SDK of SPS2."""

import time
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any, Protocol

import msgspec

from sps2.cli.bench.serve.http import Answer, BadAnswer, Http, events
from sps2.cli.bench.serve.reply import Reply
from sps2.common.api import Delta
from sps2.common.client import AsyncClient
from sps2.common.errors import Refused, ServiceError
from sps2.common.validation import MALFORMED

Prompt = list[int] | str | list[dict[str, str]]
"""Token ids, a text, or the messages of a chat."""
MESSAGE_CHARACTERS = 300
NOT_STREAMED = "the answer is no stream of server-sent events"


class Backend(Protocol):
    """Asks one server."""

    async def models(self) -> list[str]:
        """The models that it serves. Raises Refused if it does not answer."""

    async def ask(self, prompt: Prompt, answer_tokens: int, reply: Reply) -> None:
        """Fill `reply` in as the answer comes; failures are noted there."""

    async def close(self) -> None: ...


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


class OpenAI:
    """`/v1/completions`, or `/v1/chat/completions` for prompts that are messages.

    Args:
        endpoint: the path that requests go to.
        model: its name, for the server.
        fields: what the body of each request has besides.
    """

    def __init__(self, http: Http, endpoint: str, model: str, fields: Mapping[str, Any]) -> None:
        self._http = http
        self._endpoint = endpoint
        self.model = model
        self._fields = fields
        self._decode = msgspec.json.Decoder(_Event).decode

    async def models(self) -> list[str]:
        try:
            status, body = await self._http.get("/v1/models")
        except (OSError, EOFError, BadAnswer) as error:
            raise Refused(
                f"the server at {self._http.url} does not answer ({error}); start it, or name "
                "another with --base-url, or --host and --port"
            ) from error
        if status != 200:
            if self.model:  # not every server has the path
                return [self.model]
            raise Refused(f"{self._http.url}/v1/models answers with status {status}; give --model")
        try:
            found: list[dict[str, str]] = msgspec.json.decode(body)["data"]
            return [each["id"] for each in found]
        except (KeyError, TypeError, *MALFORMED) as error:
            raise Refused(f"{self._http.url}/v1/models lists no models; give --model") from error

    async def ask(self, prompt: Prompt, answer_tokens: int, reply: Reply) -> None:
        body: dict[str, Any] = {"model": self.model}
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
            body |= {"messages": prompt, "max_completion_tokens": answer_tokens}
        else:
            body |= {"prompt": prompt, "max_tokens": answer_tokens}
        body |= {"stream": True, "stream_options": {"include_usage": True}, **self._fields}
        content = msgspec.json.encode(body)
        reply.sent_s = time.perf_counter()
        try:
            async with self._http.post(self._endpoint, content) as answer:
                await self._read(answer, reply)
        except (OSError, EOFError, BadAnswer) as error:
            reply.error = f"{type(error).__name__}: {error}"

    async def close(self) -> None:
        await self._http.close()

    async def _read(self, answer: Answer, reply: Reply) -> None:
        if answer.status != 200:
            reply.error = f"status {answer.status}: {_message(await answer.body(), answer.reason)}"
            return
        if "event-stream" not in answer.headers.get("content-type", "event-stream"):
            reply.error = NOT_STREAMED
            return
        pieces: list[str] = []
        async for data in events(answer.chunks()):
            if data == b"[DONE]":
                continue
            now_s = time.perf_counter()
            try:
                event = self._decode(data)
            except MALFORMED as error:
                reply.error = f"an event that is none of OpenAI's: {error}"
                return
            if event.error is not None:
                reply.error = _text(event.error)
                return
            for choice in event.choices or ():
                said = _said(choice)
                if said or reply.stamps_s or choice.delta is None:
                    reply.stamps_s.append(now_s)
                    pieces.append(said)
            if event.usage is not None:
                _count(event.usage, reply)
        reply.text = "".join(pieces)


class Sdk:
    """The SDK, over the bus of a cluster of SPS2."""

    def __init__(self, client: AsyncClient, fields: Mapping[str, Any], model: str = "") -> None:
        self._client = client
        self._fields: dict[str, Any] = {**fields, **({"model": model} if model else {})}

    async def models(self) -> list[str]:
        return [model.id for model in await self._client.models()]

    async def ask(self, prompt: Prompt, answer_tokens: int, reply: Reply) -> None:
        pieces: list[str] = []
        reply.sent_s = time.perf_counter()
        chunks: Any
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
            messages: Any = prompt
            chunks = self._client.chat_stream(
                messages, max_completion_tokens=answer_tokens, **self._fields
            )
        else:
            text: Any = prompt
            chunks = self._client.complete_stream(text, max_tokens=answer_tokens, **self._fields)
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    now_s = time.perf_counter()
                    for choice in chunk.choices:
                        is_chat = hasattr(choice, "delta")
                        said = _said_to_sdk(choice.delta) if is_chat else choice.text
                        if said or reply.stamps_s or not is_chat:
                            reply.stamps_s.append(now_s)
                            pieces.append(said)
                    if chunk.usage and not chunk.choices:
                        reply.prompt_tokens = chunk.usage.prompt_tokens
                        reply.told_tokens = chunk.usage.completion_tokens
                        reply.cached_tokens = chunk.usage.prompt_tokens_details.cached_tokens
                        reply.details = chunk.usage.sps2
        except ServiceError as error:
            reply.error = f"{type(error).__name__}: {error}"
        reply.text = "".join(pieces)

    async def close(self) -> None:
        await self._client.close()


def _said_to_sdk(delta: Delta) -> str:
    return delta.content or delta.reasoning_content or ""


def _said(choice: _Choice) -> str:
    delta = choice.delta
    if delta is None:
        return choice.text or ""
    said = delta.content or delta.reasoning_content or delta.reasoning
    return said or (bytes(delta.tool_calls[0]).decode() if delta.tool_calls else "")


def _count(usage: _Usage, reply: Reply) -> None:
    if usage.completion_tokens is not None:
        reply.told_tokens = usage.completion_tokens
    if usage.prompt_tokens is not None:
        reply.prompt_tokens = usage.prompt_tokens
    if usage.prompt_tokens_details is not None:
        reply.cached_tokens = usage.prompt_tokens_details.cached_tokens or 0


def _message(body: bytes, reason: str) -> str:
    """What the body of an error says, however it says it."""
    try:
        found = msgspec.json.decode(body)
    except MALFORMED:
        return body.decode("utf-8", "replace").strip()[:MESSAGE_CHARACTERS] or reason
    return _text(found.get("error", found) if isinstance(found, dict) else found)


def _text(error: object) -> str:
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return str(error)[:MESSAGE_CHARACTERS]
