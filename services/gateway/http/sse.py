"""Long-running answers, as JSON or server-sent events; both are cancelled if the client leaves."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sps2.common.errors import ServiceError
from sps2.services.gateway.http.error_shapes import shaped
from sps2.services.gateway.http.framing import Framing
from sps2.services.gateway.http.problems import ErrorReport

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 3.0
WHY_CHARS = 200


class Json(Response):
    """A Struct as a JSON response."""

    media_type = "application/json"

    def __init__(
        self, value: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(msgspec.json.encode(value), status, headers)


class Failed(Response):
    """An error as JSON, in the form of the path's protocol.

    Puts it into the request's `state["why"]`, on one line, for the log.
    """

    def __init__(self, report: ErrorReport) -> None:
        super().__init__(None, report.status)
        self._report = report
        message = repr(report.message)[1:-1][:WHY_CHARS]
        self._why = f"{report.code}: {message}" if report.code else message

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["why"] = self._why
        report = self._report
        answer = Json(shaped(report, scope), report.status, report.headers)
        await answer(scope, receive, send)


def failed(error: Exception) -> Failed:
    """The response to an error; an unexpected error is logged."""
    report = ErrorReport(error)
    if report.status == 500:
        log.error("a request failed", exc_info=error)
    return Failed(report)


class Run(Response):
    """A response that `work` sends; an exception of `work` becomes an error response."""

    def __init__(self, work: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._work(scope, receive, send)
        except Exception as error:
            await failed(error)(scope, receive, send)


class Plain(Response):
    """One JSON object, once `work` is done; cancels `work` if the client leaves."""

    def __init__(self, work: Callable[[], Awaitable[object]]) -> None:
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def run() -> None:
            try:
                answer: Response = Json(await self._work())
            except Exception as error:
                answer = failed(error)
            await answer(scope, receive, send)

        await while_connected(receive, run())


class Events(Response):
    """Objects as server-sent events, with keep-alive comments in pauses.

    The response begins with the first object, or after `keep_alive_s` seconds. An error before that
    has its own HTTP status; a later error is an event.

    Args:
        framing: the form of the stream; OpenAI's events by default.
    """

    def __init__(
        self,
        objects: AsyncGenerator[object, None],
        keep_alive_s: float = KEEP_ALIVE_S,
        framing: Framing | None = None,
    ) -> None:
        self._framing = framing or Framing()
        super().__init__(
            media_type=self._framing.media_type,
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        self._objects = objects
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_connected(receive, self._run(scope, receive, send))

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        framing = self._framing
        writer = _EventWriter(send, self.status_code, self.raw_headers)
        idle = asyncio.create_task(writer.keep_alive(self._keep_alive_s, framing))
        try:
            async with aclosing(self._objects) as objects:
                async for each in objects:
                    await writer.write(framing.written(each))
        except Exception as error:
            if not isinstance(error, ServiceError):
                log.error("a stream failed", exc_info=error)
            if not writer.begun:
                idle.cancel()
                await failed(error)(scope, receive, send)
                return
            report = ErrorReport(error)
            scope.setdefault("state", {})["why"] = report.code
            await writer.write(framing.failed(report))
        finally:
            idle.cancel()
        await writer.write(framing.done, last=True)


class _EventWriter:
    def __init__(self, send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._status = status
        self._headers = headers
        self._turn = asyncio.Lock()
        self._written = asyncio.Event()
        self.begun = False

    async def write(self, event: bytes, last: bool = False) -> None:
        async with self._turn:
            if not self.begun:
                self.begun = True
                start = {"status": self._status, "headers": self._headers}
                await self._send({"type": "http.response.start", **start})
            body = {"body": event, "more_body": not last}
            await self._send({"type": "http.response.body", **body})
        self._written.set()

    async def keep_alive(self, pause_s: float, framing: Framing) -> None:
        while True:
            self._written.clear()
            try:
                async with asyncio.timeout(pause_s):
                    await self._written.wait()
            except TimeoutError:
                if sign := framing.still_here:
                    await self.write(sign)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work`; cancel it if the client leaves."""
    async with asyncio.TaskGroup() as group:
        tasks = {group.create_task(work), group.create_task(_left(receive))}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
