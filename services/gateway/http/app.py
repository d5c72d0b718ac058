"""The HTTP routes: decode bodies to typed requests, and encode chunks as answers."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable
from functools import partial
from importlib.resources import files
from typing import TypeVar

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response
from msgspec import UNSET
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from sps2.common import api
from sps2.common.api import ChatChunk, ChatRequest, CompletionChunk, CompletionRequest, Version
from sps2.common.api.collect import collect_chat, collect_completion
from sps2.common.errors import Invalid, ServiceError
from sps2.services.gateway.gateway import CHAT, COMPLETION, EMBEDDING, Gateway
from sps2.services.gateway.http.access_log import Logged, Visits
from sps2.services.gateway.http.authorization import OPEN, Doorman, account_of
from sps2.services.gateway.http.body import Bodies
from sps2.services.gateway.http.cors import shared
from sps2.services.gateway.http.door import Door, unready
from sps2.services.gateway.http.error_shapes import ErrorShapes
from sps2.services.gateway.http.host_check import Guard
from sps2.services.gateway.http.logprobs_json import Written
from sps2.services.gateway.http.openapi import document, gives, takes
from sps2.services.gateway.http.problems import NotReady, TooLarge, Unsupported
from sps2.services.gateway.http.request_id import RequestIds, caller_of, name_of
from sps2.services.gateway.http.resuming import Numbered, place_in, rest
from sps2.services.gateway.http.sse import KEEP_ALIVE_S, Events, Json, Plain, Run, failed
from sps2.services.gateway.keys.api_keys import Register
from sps2.services.gateway.monitoring import request_metrics
from sps2.services.gateway.protocols.anthropic import routes as anthropic
from sps2.services.gateway.protocols.batches import routes as batch_routes
from sps2.services.gateway.protocols.batches.anywhere import Anywhere as BatchesAnywhere
from sps2.services.gateway.protocols.ollama import routes as ollama
from sps2.services.gateway.protocols.responses import routes as response_routes
from sps2.services.gateway.protocols.responses.anywhere import Anywhere as ResponsesAnywhere
from sps2.services.gateway.repeats import HEADER, MOST_CHARS, Asked, Repeats, asked

T = TypeVar("T", CompletionChunk, ChatChunk)
DOCS = (
    "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "frame-ancestors 'none'"
)
"""Content security policy of the page at /docs: it may not contact other hosts."""

R = TypeVar("R", CompletionRequest, ChatRequest)

A_COMPLETION = {"prompt": "The capital of France is", "max_tokens": 16}
A_CHAT = {"messages": [{"role": "user", "content": "Name three rivers."}], "max_tokens": 64}
AN_INPUT = {"input": ["The capital of France is", "Paris"]}
"""Examples of requests, for the API's document."""


def application(
    gateway: Gateway,
    obstacle: Callable[[], Awaitable[str]],
    obstacle_now: Callable[[], Awaitable[str]],
    missing: Callable[[], str],
    *,
    version: str,
    bodies: Bodies,
    batches: BatchesAnywhere,
    page: Callable[[], Awaitable[bytes]],
    repeats: Repeats,
    keep_alive_s: float = KEEP_ALIVE_S,
    register: Register | None = None,
    names: Iterable[str] = (),
    responses: ResponsesAnywhere,
    origins: Collection[str] = (),
    logged: Logged = "refused",
) -> ASGIApp:
    """The gateway as an ASGI application.

    Args:
        bodies: the bodies in memory.
        batches: the batches of all clients.
        page: the page of metrics.
        repeats: answers that may be asked for again.
        obstacle: why no requests are accepted, in words; empty when they are. It may wait for that.
        obstacle_now: the same, without waiting.
        missing: what is missing, in words, whether requests are accepted or not.
        keep_alive_s: silence on a stream after which a comment is sent.
        register: the API keys; None accepts every client.
        names: host names that the gateway accepts if there are no API keys.
        responses: keeps those of the Responses API.
        origins: sites whose pages may use the gateway; `*` is any.
        logged: which requests are logged.
    """
    app = FastAPI(title="SPS2", version=version, docs_url=None, redoc_url=None)
    for kind in (HTTPException, ServiceError, TooLarge, Unsupported, NotReady, Exception):
        app.add_exception_handler(kind, _handler)

    docs = files(__package__).joinpath("docs.html").read_text("utf-8")

    door = Door(gateway, bodies, obstacle, keep_alive_s)

    async def given(
        request: Request,
        body: CompletionRequest | ChatRequest,
        chunks: AsyncGenerator[T, None],
        kind: type[T],
        collect: Callable[..., Awaitable[object]],
    ) -> Response:
        repeated, place = _repeated(request, body), place_in(request.headers)
        if place is not None and not (repeated and body.stream):
            raise Invalid(
                "`Last-Event-ID` goes on with a stream that had an `Idempotency-Key`: send the "
                "same request with the same key",
                None,
                "invalid_value",
            )
        if repeated is not None:
            continued = None if place is None else place.answer
            chunks = await repeats.answer(repeated, chunks, kind, continued)
        if not body.stream:
            return Plain(partial(collect, chunks, Written))
        sent = _streamed(chunks, body)
        if repeated is None:
            return Events(sent, keep_alive_s)
        return Events(sent if place is None else rest(sent, place), keep_alive_s, Numbered(place))

    @app.get("/v1/models", **gives(api.Models, "List the model, by each of its names"))
    async def list_models() -> Response:
        return Json(gateway.models())

    @app.get("/v1/models/{model:path}", **gives(api.Model, "Show the model", 404))
    async def show_model(model: str) -> Response:
        if not model:
            return Json(gateway.models())
        return Json(gateway.model(model))

    @app.post(
        "/v1/completions",
        **takes(CompletionRequest, api.Completion, "Continue a text", A_COMPLETION),
    )
    async def complete(request: Request) -> Response:
        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            name, caller = name_of(request), caller_of(request)
            async with door.translated(request, COMPLETION, CompletionRequest, _checked) as body:
                account, value = account_of(request), body.value
                chunks = gateway.complete(value, name, caller, account, body.release)
                answer = await given(request, value, chunks, CompletionChunk, collect_completion)
                await answer(scope, receive, send)

        return Run(run)

    @app.post(
        "/v1/chat/completions",
        **takes(ChatRequest, api.Chat, "Answer in a conversation", A_CHAT),
    )
    async def chat(request: Request) -> Response:
        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            name, caller = name_of(request), caller_of(request)
            async with door.translated(request, CHAT, ChatRequest, _checked) as body:
                account, value = account_of(request), body.value
                chunks = gateway.chat(value, name, caller, account, body.release)
                answer = await given(request, value, chunks, ChatChunk, collect_chat)
                await answer(scope, receive, send)

        return Run(run)

    @app.post(
        "/v1/embeddings",
        **takes(api.EmbeddingRequest, api.Embeddings, "Turn texts into vectors", AN_INPUT),
    )
    async def embed(request: Request) -> Response:
        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            name, caller = name_of(request), caller_of(request)
            async with door.entered(request, EMBEDDING, api.EmbeddingRequest) as body:
                account, ordered = account_of(request), body.release
                work = partial(gateway.embed, body.value, name, caller, account, ordered)
                await Plain(work)(scope, receive, send)

        return Run(run)

    @app.post(
        "/v1/estimate",
        **takes(api.EstimateRequest, api.Estimate, "Predict what a request would take", A_CHAT),
    )
    async def estimate(request: Request) -> Response:
        async with bodies.read(request, api.EstimateRequest) as body:
            await door.check_ready()
            account = account_of(request)
            return Json(await gateway.estimate(body.value, name_of(request), account))

    @app.post(
        "/tokenize", **takes(api.Tokenize, api.Tokens, "Text to token ids", {"prompt": "Hello"})
    )
    async def tokenize(request: Request) -> Response:
        async with bodies.read(request, api.Tokenize) as body:
            return Json(await gateway.tokenize(body.value))

    @app.post(
        "/detokenize", **takes(api.Detokenize, api.Text, "Token ids to text", {"tokens": [1, 2]})
    )
    async def detokenize(request: Request) -> Response:
        async with bodies.read(request, api.Detokenize) as body:
            return Json(await gateway.detokenize(body.value))

    anthropic.add(app, door)

    @app.get("/docs", include_in_schema=False)
    async def show_docs() -> Response:
        return Response(docs, media_type="text/html", headers={"content-security-policy": DOCS})

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.get("/ready", **gives(api.Ready, "Say whether requests are accepted", 503))
    async def ready() -> Response:
        if reason := await obstacle_now():
            raise unready(reason)
        return Json(api.Ready(missing()))

    @app.get("/version", **gives(Version, "Show the version"))
    async def show_version() -> Response:
        return Json(Version(version))

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(await page(), media_type=request_metrics.CONTENT_TYPE)

    ollama.add(app, door)
    response_routes.add(app, door, responses)
    batch_routes.add(app, door, batches)

    open_paths = None if register is None else OPEN
    app.openapi = lambda: document(app, open_paths, door.families)  # type: ignore[method-assign]
    inner: ASGIApp = Guard(app, names, origins) if register is None else Doorman(app, register)
    shaped = shared(ErrorShapes(inner, door.error_shapes), origins)
    return RequestIds(
        Visits(shaped, app.routes, gateway.metrics, logged), door.id_headers, gateway.names
    )


async def _handler(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        what = f"{request.method} {request.url.path}"
        error = HTTPException(error.status_code, f"{error.detail}: {what}", error.headers)
    return failed(error)


def _repeated(request: Request, body: CompletionRequest | ChatRequest) -> Asked | None:
    """The request, if it has a key. Raises Invalid if that is malformed."""
    key, account = request.headers.get(HEADER), account_of(request)
    if key is None:
        return None
    if not (key.isascii() and key.isprintable() and 0 < len(key) <= MOST_CHARS):
        raise Invalid(
            f"the header `Idempotency-Key` may have 1 to {MOST_CHARS} printable characters",
            None,
            "invalid_value",
        )
    return asked("" if account is None else account.name, key, request.url.path, body)


def _checked(request: R) -> R:
    if request.sps2 is not None and request.sps2.progress and not request.stream:
        raise Invalid("`sps2.progress` needs `stream` to be true", "sps2.progress", "invalid_value")
    return request


async def _streamed(
    chunks: AsyncGenerator[T, None], request: CompletionRequest | ChatRequest
) -> AsyncGenerator[T, None]:
    """The chunks for an HTTP client: with usage only if it requested usage."""
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
