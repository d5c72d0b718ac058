"""The routes of Ollama's API."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from sps2.common.api import ChatRequest, CompletionRequest, EmbeddingRequest, Tokenize
from sps2.common.api.parsing import MISSING, UNSUPPORTED
from sps2.common.errors import Invalid
from sps2.services.gateway.gateway import CHAT, EMBEDDING
from sps2.services.gateway.http.authorization import account_of
from sps2.services.gateway.http.door import Door
from sps2.services.gateway.http.request_id import caller_of, name_of
from sps2.services.gateway.http.sse import Events, Json, Plain, Run
from sps2.services.gateway.protocols.ollama.catalogue import Release, listed, shown
from sps2.services.gateway.protocols.ollama.records import Lines, Recorder, failure
from sps2.services.gateway.protocols.ollama.requests import (
    ChatBody,
    EmbedBody,
    GenerateBody,
    Shared,
    ShowBody,
)
from sps2.services.gateway.protocols.ollama.translate import (
    chat_of,
    embedding_of,
    generation_of,
    name_of_model,
)

B = TypeVar("B", bound=Shared)
Asked = ChatRequest | CompletionRequest | None

OTHERS = {
    "pull": "`spsctl pull NAME` pulls a model where the cluster runs",
    "push": "models are not sent elsewhere",
    "create": "a model is a folder of files; see docs/models.md",
    "copy": "`served_model_name` in the configuration gives a model other names",
    "embeddings": "send `input` to `/api/embed`",
}
"""Paths below /api that are refused, and what to do instead."""


def add(app: FastAPI, door: Door) -> None:
    """Add the routes of Ollama's API, below /api."""
    door.error_shapes["/api"] = failure
    served = door.gateway.served

    def answered(
        kind: type[B], translate: Callable[[B], Asked], chat: bool, request: Request
    ) -> Run:
        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            def both(body: B) -> tuple[B, Asked]:
                return body, translate(body)

            async with door.translated(request, CHAT, kind, both) as held:
                body, asked = held.value
                recorder = Recorder(body.model, chat)
                chunks: Any
                if asked is None:
                    reason = "unload" if body.keep_alive in (0, "0") else "load"
                    answer: Response = _line(recorder.nothing(reason))  # type: ignore[arg-type]
                    await answer(scope, receive, send)
                    return
                who = (name_of(request), caller_of(request), account_of(request), held.release)
                if isinstance(asked, CompletionRequest):
                    chunks = door.gateway.complete(await _unlimited(door, asked), *who)
                else:
                    chunks = door.gateway.chat(asked, *who)
                if body.stream is False:
                    answer = Plain(partial(recorder.whole, chunks))
                else:
                    answer = Events(recorder.records(chunks), door.keep_alive_s, Lines())
                await answer(scope, receive, send)

        return Run(run)

    @app.post("/api/chat", include_in_schema=False)
    async def chat(request: Request) -> Response:
        return answered(ChatBody, lambda body: chat_of(body, served), True, request)

    @app.post("/api/generate", include_in_schema=False)
    async def generate(request: Request) -> Response:
        return answered(GenerateBody, lambda body: generation_of(body, served), False, request)

    @app.post("/api/embed", include_in_schema=False)
    async def embed(request: Request) -> Response:
        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            def both(body: EmbedBody) -> tuple[Recorder, EmbeddingRequest]:
                return Recorder(body.model, False), embedding_of(body, served)

            async with door.translated(request, EMBEDDING, EmbedBody, both) as held:
                recorder, asked = held.value
                who = (name_of(request), caller_of(request), account_of(request), held.release)

                async def work() -> object:
                    return recorder.embedded(await door.gateway.embed(asked, *who))

                await Plain(work)(scope, receive, send)

        return Run(run)

    @app.get("/", include_in_schema=False)
    async def show_life() -> Response:
        """The command `ollama` looks here first."""
        return Response("SPS2 is running\n", media_type="text/plain")

    @app.get("/api/tags", include_in_schema=False)
    async def tags() -> Response:
        return Json(listed(served, running=False))

    @app.get("/api/ps", include_in_schema=False)
    async def running() -> Response:
        return Json(listed(served, running=True))

    @app.get("/api/version", include_in_schema=False)
    async def version() -> Response:
        return Json(Release())

    @app.post("/api/show", include_in_schema=False)
    async def show(request: Request) -> Response:
        async with door.bodies.read(request, ShowBody) as body:
            name = body.value.model or body.value.name
            if not name:
                raise Invalid("`model` is required", "model", MISSING)
            name_of_model(name, served)
            return Json(shown(served))

    def refusal(path: str, advice: str) -> Callable[[], Any]:
        async def refuse() -> Response:
            raise Invalid(f"/api/{path} is not supported: {advice}", None, UNSUPPORTED)

        return refuse

    for path, advice in OTHERS.items():
        app.post(f"/api/{path}", include_in_schema=False)(refusal(path, advice))
    gone = refusal("delete", "`spsctl` manages the models where the cluster runs")
    app.delete("/api/delete", include_in_schema=False)(gone)


def _line(value: object) -> Response:
    return Response(msgspec.json.encode(value) + b"\n", media_type=Lines.media_type)


async def _unlimited(door: Door, asked: CompletionRequest) -> CompletionRequest:
    """A completion that may go on as a chat may; OpenAI's has 16 tokens if not told otherwise."""
    if asked.max_tokens is not None or not isinstance(asked.prompt, str):
        return asked
    ids = (await door.gateway.tokenize(Tokenize(prompt=asked.prompt))).tokens
    served = door.gateway.served
    room = max(1, served.max_context - len(ids))
    most = min(served.default_max_tokens or room, room)
    return msgspec.structs.replace(asked, prompt=list(ids), max_tokens=most)
