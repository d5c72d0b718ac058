"""The form of error answers, by path: OpenAI's, unless the path is of another protocol."""

from collections.abc import Callable, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from sps2.services.gateway.http.problems import ErrorReport
from sps2.services.gateway.http.request_id import is_below

Shape = Callable[[ErrorReport, str], object]
"""Makes the body of an error answer, given the request's id."""

_STATE = "error_shape"


class ErrorShapes:
    """ASGI middleware inside of `RequestIds`, around everything that may refuse a request.

    Args:
        shapes: by path; the paths below it have the same.
    """

    def __init__(self, app: ASGIApp, shapes: Mapping[str, Shape]) -> None:
        self._app = app
        self._shapes = shapes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            for root, shape in self._shapes.items():
                if is_below(path, root):
                    scope.setdefault("state", {})[_STATE] = shape
        await self._app(scope, receive, send)


def shaped(report: ErrorReport, scope: Scope) -> object:
    """The body of the answer to an error of the request `scope`."""
    state = scope.get("state", {})
    shape: Shape | None = state.get(_STATE)
    return report.body if shape is None else shape(report, request_id(scope))


def request_id(scope: Scope) -> str:
    """The request's id as the header `x-request-id` of its answer has it."""
    state = scope.get("state", {})
    caller = state.get("caller")
    given: str = caller.request_id if caller else ""
    name: str = state.get("name", "")
    return given or name
