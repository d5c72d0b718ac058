"""The routes of Anthropic's Messages API."""

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from sps2.common.api import ChatRequest
from sps2.services.gateway.http.authorization import account_of
from sps2.services.gateway.http.door import Door
from sps2.services.gateway.http.error_shapes import request_id
from sps2.services.gateway.http.openapi import Family, takes
from sps2.services.gateway.http.request_id import caller_of, name_of
from sps2.services.gateway.http.sse import Events, Json, Plain, Run
from sps2.services.gateway.protocols.anthropic.answers import ErrorBody, Message, TokenCount
from sps2.services.gateway.protocols.anthropic.errors import MessageFraming, error_body
from sps2.services.gateway.protocols.anthropic.requests import CountTokensRequest, MessagesRequest
from sps2.services.gateway.protocols.anthropic.translate import chat_of, conversation
from sps2.services.gateway.protocols.anthropic.writer import MessageWriter
from sps2.services.gateway.protocols.renaming import renamed
from sps2.services.gateway.threads import threaded

PATH = "/v1/messages"
PREFIX = "msg_"
NAMES = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "response_format.json_schema": "output_config.format",
}
A_MESSAGE = {"messages": [{"role": "user", "content": "Name three rivers."}], "max_tokens": 64}
FAMILY = Family("Anthropic", (MessagesRequest, Message, CountTokensRequest, TokenCount), ErrorBody)
A_COUNT = {"messages": [{"role": "user", "content": "Name three rivers."}]}


def add(app: FastAPI, door: Door) -> None:
    """Add the routes to the application."""
    door.error_shapes[PATH] = error_body
    door.id_headers[PATH] = "request-id"
    door.families.append(FAMILY)
    gateway = door.gateway

    @app.post(
        PATH, **takes(MessagesRequest, Message, "Answer in Anthropic's form", A_MESSAGE, FAMILY)
    )
    async def messages(request: Request) -> Response:
        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            name, caller = name_of(request), caller_of(request)
            async with door.translated(request, PREFIX, MessagesRequest, _translated) as body:
                sent, chat = body.value
                account = account_of(request)
                made = gateway.chat(chat, name, caller, account, body.release)
                chunks = renamed(made, NAMES)
                model = gateway.served.model
                writer = MessageWriter(f"{PREFIX}{name}", model, sent.max_tokens)
                answer: Response = Plain(lambda: writer.message(chunks))
                if sent.stream:
                    framing = MessageFraming(request_id(scope))
                    answer = Events(writer.events(chunks), door.keep_alive_s, framing)
                await answer(scope, receive, send)

        return Run(run)

    @app.post(
        f"{PATH}/count_tokens",
        **takes(
            CountTokensRequest,
            TokenCount,
            "Count the tokens of a message's prompt",
            A_COUNT,
            FAMILY,
        ),
    )
    async def count_tokens(request: Request) -> Response:
        async with door.bodies.read(request, CountTokensRequest) as body:
            chat = await threaded(body.size, lambda: conversation(body.value))
            return Json(TokenCount(await gateway.count_tokens(chat, account_of(request))))


def _translated(request: MessagesRequest) -> tuple[MessagesRequest, ChatRequest]:
    return request, chat_of(request)
