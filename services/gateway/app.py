"""The HTTP routes: bodies to typed requests, chunks to answers."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response
from msgspec import UNSET
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from sps2.common import api
from sps2.common.api import ChatChunk, ChatRequest, CompletionChunk, CompletionRequest, Version
from sps2.common.collect import collect_chat, collect_completion
from sps2.common.errors import Invalid, ServiceError
from sps2.services.gateway import body, metrics
from sps2.services.gateway.api_keys import Register
from sps2.services.gateway.doorman import OPEN, Doorman, account_of
from sps2.services.gateway.gateway import Gateway
from sps2.services.gateway.openapi import document, gives, takes
from sps2.services.gateway.problems import NotReady, TooLarge
from sps2.services.gateway.request_id import RequestIds, caller_of, name_of
from sps2.services.gateway.sse import KEEP_ALIVE_S, Events, Json, Plain, failed

T = TypeVar("T", CompletionChunk, ChatChunk)

COMPLETION = {"prompt": "The capital of France is", "max_tokens": 16}
CHAT = {"messages": [{"role": "user", "content": "Name three rivers."}], "max_tokens": 64}
"""Examples of requests, for the API's document."""


def application(
    gateway: Gateway,
    obstacle: Callable[[], Awaitable[str]],
    *,
    version: str,
    max_body_bytes: int,
    keep_alive_s: float = KEEP_ALIVE_S,
    register: Register | None = None,
) -> ASGIApp:
    """The gateway as an ASGI application.

    Args:
        obstacle: why no request can be taken, in words; empty when they are.
        keep_alive_s: silence on a stream after which a comment is sent.
        register: of the API keys; None lets everybody in.
    """
    app = FastAPI(title="SPS2", version=version, redoc_url=None)
    for kind in (HTTPException, ServiceError, TooLarge, NotReady, Exception):
        app.add_exception_handler(kind, _handler)

    async def check_ready() -> None:
        if reason := await obstacle():
            raise NotReady(f"the cluster is not ready: it waits for {reason}")

    @app.get("/v1/models", **gives(api.Models, "List the model, by each of its names"))
    async def list_models() -> Response:
        return Json(gateway.models())

    @app.get("/v1/models/{model:path}", **gives(api.Model, "Show the model", 404))
    async def show_model(model: str) -> Response:
        return Json(gateway.model(model))

    @app.post(
        "/v1/completions", **takes(CompletionRequest, api.Completion, "Continue a text", COMPLETION)
    )
    async def complete(request: Request) -> Response:
        asked = await body.read(request, CompletionRequest, max_body_bytes)
        _check_progress(asked)
        await check_ready()
        chunks = gateway.complete(asked, name_of(request), caller_of(request), account_of(request))
        if asked.stream:
            return Events(_streamed(chunks, asked), keep_alive_s)
        return Plain(lambda: collect_completion(chunks))

    @app.post(
        "/v1/chat/completions", **takes(ChatRequest, api.Chat, "Answer in a conversation", CHAT)
    )
    async def chat(request: Request) -> Response:
        asked = await body.read(request, ChatRequest, max_body_bytes)
        _check_progress(asked)
        await check_ready()
        chunks = gateway.chat(asked, name_of(request), caller_of(request), account_of(request))
        if asked.stream:
            return Events(_streamed(chunks, asked), keep_alive_s)
        return Plain(lambda: collect_chat(chunks))

    @app.post(
        "/tokenize", **takes(api.Tokenize, api.Tokens, "Text to token ids", {"prompt": "Hello"})
    )
    async def tokenize(request: Request) -> Response:
        asked = await body.read(request, api.Tokenize, max_body_bytes)
        return Json(await gateway.tokenize(asked))

    @app.post(
        "/detokenize", **takes(api.Detokenize, api.Text, "Token ids to text", {"tokens": [1, 2]})
    )
    async def detokenize(request: Request) -> Response:
        asked = await body.read(request, api.Detokenize, max_body_bytes)
        return Json(await gateway.detokenize(asked))

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.get("/ready")
    async def ready() -> Response:
        await check_ready()
        return Response()

    @app.get("/version", **gives(Version, "Show the version"))
    async def show_version() -> Response:
        return Json(Version(version))

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(gateway.metrics.page(), media_type=metrics.CONTENT_TYPE)

    open_paths = None if register is None else OPEN
    app.openapi = lambda: document(app, open_paths)  # type: ignore[method-assign]
    return RequestIds(app if register is None else Doorman(app, register))


async def _handler(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        what = f"{request.method} {request.url.path}"
        error = HTTPException(error.status_code, f"{error.detail}: {what}", error.headers)
    return failed(error)


def _check_progress(request: CompletionRequest | ChatRequest) -> None:
    if request.sps2 is not None and request.sps2.progress and not request.stream:
        raise Invalid("`sps2.progress` needs `stream` to be true", "sps2.progress")


async def _streamed(
    chunks: AsyncGenerator[T, None], request: CompletionRequest | ChatRequest
) -> AsyncGenerator[object, None]:
    """Chunks as HTTP clients want them: about usage only if they asked for it."""
    wanted = request.stream_options is not None and request.stream_options.include_usage
    try:
        async for chunk in chunks:
            if chunk.choices or chunk.sps2:
                silent = wanted and chunk.usage is UNSET
                yield msgspec.structs.replace(chunk, usage=None) if silent else chunk
            elif wanted:
                yield chunk
    finally:
        await chunks.aclose()
