"""Reads the body of an HTTP request, within bounds."""

from typing import TypeVar

from starlette.requests import Request

from sps2.common import api
from sps2.services.gateway.problems import TooLarge

T = TypeVar("T")


async def read(request: Request, kind: type[T], max_bytes: int) -> T:
    """The request's JSON body as a `kind`.

    Raises:
        TooLarge: there are more than `max_bytes`; no more than that is kept in memory.
        Invalid: it is not a `kind`.
    """
    too_large = TooLarge(f"the body is over the limit of {max_bytes} bytes")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_bytes:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise too_large
    return api.parse(bytes(body), kind)
