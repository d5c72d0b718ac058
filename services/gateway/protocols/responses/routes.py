"""The routes of OpenAI's Responses API."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

from fastapi import FastAPI, Request
from fastapi.responses import Response as HttpResponse
from starlette.types import Receive, Scope, Send

from sps2.common.api import ChatChunk, ErrorBody, parse
from sps2.common.errors import Invalid, ServiceError
from sps2.services.gateway.http.authorization import account_of
from sps2.services.gateway.http.door import Door, Lowered
from sps2.services.gateway.http.openapi import Family, gives, takes
from sps2.services.gateway.http.problems import ErrorReport
from sps2.services.gateway.http.request_id import caller_of, name_of
from sps2.services.gateway.http.sse import Events, Json, Plain, Run
from sps2.services.gateway.keys.quota import Account
from sps2.services.gateway.protocols.renaming import renamed
from sps2.services.gateway.protocols.responses.answers import Deleted, ItemList, Response
from sps2.services.gateway.protocols.responses.anywhere import Anywhere
from sps2.services.gateway.protocols.responses.items import Item
from sps2.services.gateway.protocols.responses.requests import ResponsesRequest
from sps2.services.gateway.protocols.responses.store import Responses, Stored
from sps2.services.gateway.protocols.responses.translate import Asked, Earlier, asked, begun
from sps2.services.gateway.protocols.responses.writer import ResponseFraming, ResponseWriter

log = logging.getLogger(__name__)

PATH = "/v1/responses"
ONE = f"{PATH}/{{response_id}}"
PREFIX = "resp_"
FAMILY = Family("Responses", (ResponsesRequest, Response, Deleted, ItemList), ErrorBody)
A_RESPONSE = {"input": "Name three rivers.", "max_output_tokens": 64}
NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
}
PAGE = 20
"""Items that are listed if a client does not say how many."""


def add(app: FastAPI, door: Door, anywhere: Anywhere) -> None:
    """Add the routes to the application.

    Args:
        anywhere: the responses that are stored, here or elsewhere.
    """
    door.families.append(FAMILY)
    gateway, stored, background = door.gateway, anywhere.here, anywhere.background

    @app.post(PATH, **takes(ResponsesRequest, Response, "Respond to items", A_RESPONSE, FAMILY))
    async def respond(request: Request) -> HttpResponse:
        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            name, owner = name_of(request), _owner(request)
            earlier: Earlier = stored

            async def find(value: ResponsesRequest) -> None:
                nonlocal earlier
                earlier = await anywhere.earlier(value, owner)

            def translate(value: ResponsesRequest) -> Asked:
                return asked(value, earlier, owner)

            kind = ResponsesRequest
            async with door.translated(request, PREFIX, kind, translate, True, find) as body:
                told = body.value
                first = begun(told.request, f"{PREFIX}{name}", gateway.served.model)
                writer = ResponseWriter(first, _keeping(stored, told, owner))
                tokenised = asyncio.Event()

                def ordered() -> None:
                    body.release()
                    tokenised.set()

                account = account_of(request)
                made = gateway.chat(told.chat, name, caller_of(request), account, ordered)
                chunks = renamed(made, NAMES)
                answer: HttpResponse
                if told.request.background:
                    stored.put(Stored(first, told.items), owner)
                    work = _unattended(writer, chunks, tokenised)
                    await _either(tokenised, background.start(first.id, work))
                    answer = Json(writer.response)
                elif told.request.stream:
                    framing = ResponseFraming(writer)
                    answer = Events(writer.streamed(chunks), door.keep_alive_s, framing)
                else:
                    answer = Plain(lambda: writer.whole(chunks))
                await answer(scope, receive, send)

        return Run(run)

    async def in_batch(
        body: bytes, name: str, account: Account | None, lowered: Lowered
    ) -> Response:
        owner = "" if account is None else account.name
        value = await asyncio.to_thread(parse, body, ResponsesRequest)
        earlier = await anywhere.earlier(value, owner)
        told = await asyncio.to_thread(asked, value, earlier, owner)
        for field in ("stream", "background"):
            if getattr(told.request, field):
                raise Invalid(
                    f"`{field}` is not possible in a batch: leave it out",
                    field,
                    "unsupported_parameter",
                )
        writer = ResponseWriter(
            begun(told.request, f"{PREFIX}{name}", gateway.served.model),
            _keeping(stored, told, owner),
        )
        chunks = gateway.chat(lowered(told.chat), name, account=account)
        return await writer.whole(renamed(chunks, NAMES))

    door.batched[PATH] = in_batch

    @app.get(ONE, **gives(Response, "Show a stored response", 400, 404, family=FAMILY))
    async def show(request: Request, response_id: str) -> HttpResponse:
        if request.query_params.get("stream", "false").lower() == "true":
            raise Invalid(
                "`stream` is not supported for stored responses: ask again until `status` is "
                "`completed`",
                "stream",
                "unsupported_parameter",
            )
        return Json((await anywhere.get(response_id, _owner(request))).response)

    @app.delete(ONE, **gives(Deleted, "Delete a stored response", 404, family=FAMILY))
    async def delete(request: Request, response_id: str) -> HttpResponse:
        await anywhere.end(response_id, _owner(request), forget=True)
        return Json(Deleted(id=response_id))

    @app.post(
        f"{ONE}/cancel", **gives(Response, "Cancel a background response", 400, 404, family=FAMILY)
    )
    async def cancel(request: Request, response_id: str) -> HttpResponse:
        owner = _owner(request)
        if not (await anywhere.get(response_id, owner)).response.background:
            raise Invalid(
                "only a response with `background` can be cancelled: another ends when its client "
                "leaves",
                None,
                "invalid_value",
            )
        return Json((await anywhere.end(response_id, owner)).response)

    @app.get(
        f"{ONE}/input_items",
        **gives(ItemList, "List what a response answers", 400, 404, family=FAMILY),
    )
    async def input_items(request: Request, response_id: str) -> HttpResponse:
        items = (await anywhere.get(response_id, _owner(request))).items
        return Json(_page(items, request.query_params))


def _owner(request: Request) -> str:
    account = account_of(request)
    return "" if account is None else account.name


def _page(items: Sequence[Item], query: Mapping[str, str]) -> ItemList:
    """The items that a query asks for. Raises Invalid, naming its field at fault."""
    limit, order, after = (
        query.get("limit", str(PAGE)),
        query.get("order", "desc"),
        query.get("after"),
    )
    if not (limit.isascii() and limit.isdigit() and len(limit) < 9 and 1 <= int(limit) <= 100):
        raise Invalid("`limit` must be a whole number from 1 to 100", "limit", "invalid_value")
    if order not in ("asc", "desc"):
        raise Invalid("`order` must be `asc` or `desc`", "order", "invalid_value")
    ordered = list(items) if order == "asc" else [*reversed(items)]
    start = 0
    if after is not None:
        places = [place for place, item in enumerate(ordered, 1) if item.id == after]
        if not places:
            raise Invalid(f"there is no item {after[:80]!r}", "after", "invalid_value")
        start = places[0]
    page = ordered[start : start + int(limit)]
    return ItemList(
        data=page,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=start + len(page) < len(ordered),
    )


def _keeping(stored: Responses, told: Asked, owner: str) -> Callable[[Response], None]:
    """Stores a response that has ended, if that is wanted."""

    def keep(response: Response) -> None:
        if told.request.store is not False:
            stored.put(Stored(response, told.items), owner)

    return keep


async def _unattended(
    writer: ResponseWriter, chunks: AsyncGenerator[ChatChunk, None], tokenised: asyncio.Event
) -> None:
    """Make a response without a client; an error after it was `tokenised` becomes part of it."""
    try:
        await writer.whole(chunks)
    except asyncio.CancelledError:
        writer.cancel()
        raise
    except Exception as error:
        if not isinstance(error, ServiceError):
            log.error("a response in the background failed", exc_info=error)
        writer.fail(ErrorReport(error))
        if not tokenised.is_set():
            raise


async def _either(ready: asyncio.Event, task: asyncio.Task[None]) -> None:
    """Wait for `ready`. Raises what `task` raises before that."""
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if task.done() and not ready.is_set():
        task.result()
