"""Adds an `x-request-id` to every HTTP answer: the client's own, or the name of the answer."""

import re
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sps2.services.gateway.correlation_ids import Caller
from sps2.services.gateway.names import Names

HEADER = "x-request-id"
TRACE_HEADER = "traceparent"
_SANE = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)


class RequestIds:
    """ASGI middleware around everything, so that error answers have the header too.

    Args:
        others: further names of the header, by path; the paths below it have them too.
        names: makes the names of answers.
    """

    def __init__(self, app: ASGIApp, others: Mapping[str, str], names: Names) -> None:
        self._app = app
        self._others = others
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = self._names()
        headers = Headers(scope=scope)
        given = headers.get(HEADER, "")
        given = given if _SANE.fullmatch(given) else ""
        caller = Caller(given, headers.get(TRACE_HEADER, ""))
        scope.setdefault("state", {}).update(name=name, caller=caller)
        header, path = given or name, scope["path"]
        names = [HEADER]
        names += [each for root, each in self._others.items() if is_below(path, root)]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(dict.fromkeys(names, header))
            await send(message)

        await self._app(scope, receive, send_with_id)


def is_below(path: str, root: str) -> bool:
    """Whether a path is `root`, or below it."""
    return path == root or path.startswith(f"{root}/")


def name_of(request: Request) -> str:
    """The name given to the answer of `request`."""
    name: str = request.state.name
    return name


def caller_of(request: Request) -> Caller:
    """The ids that the client sent with `request`."""
    caller: Caller = request.state.caller
    return caller
