"""Keeps pages of other sites from using a gateway without API keys through a user's browser."""

from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sps2.services.gateway.http.problems import Foreign, Misdirected
from sps2.services.gateway.http.sse import failed

OPEN = frozenset({"/health", "/ready"})
"""Paths for probes, under any host name: they reveal nothing."""
ANY = "*"


class Guard:
    """ASGI middleware around the routes: checks `Host` and `Origin`.

    Anybody can point a name at this machine (DNS rebinding). So `Host` must be an address,
    `localhost`, or one of `names`. A browser sends simple posts to any site without a preflight.
    So posts of another `Origin` must have the content type of JSON, which needs a preflight.

    Args:
        names: host names of this gateway; `*` accepts any.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names if name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or ANY in self._names:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if host and not self._is_own(f"//{host}"):
            error: Exception = Misdirected(
                f"this gateway is not {host[:80]!r}: without keys it answers to addresses, to "
                "localhost, and to the names in `allowed_hosts` of [gateway]"
            )
        elif (
            origin is not None
            and scope["method"] not in ("GET", "HEAD", "OPTIONS")
            and kind != "application/json"
            and not self._is_own(origin)
        ):
            error = Foreign(
                f"a page of {origin[:80]!r} may not post this: send the content-type "
                "application/json, or name its host in `allowed_hosts` of [gateway]"
            )
        else:
            await self._app(scope, receive, send)
            return
        await failed(error)(scope, receive, send)

    def _is_own(self, url: str) -> bool:
        try:
            name = (urlsplit(url).hostname or "").rstrip(".")
        except ValueError:
            return False
        return (
            name in self._names
            or name == "localhost"
            or name.endswith(".localhost")
            or _is_address(name)
        )


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
