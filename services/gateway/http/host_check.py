"""Keeps pages of other sites from using a gateway without API keys through a user's browser."""

from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sps2.services.gateway.http.problems import Foreign, Misdirected, WrongType
from sps2.services.gateway.http.sse import failed

OPEN = frozenset({"/health", "/ready"})
"""Paths for probes, under any host name: they reveal nothing."""
ANY = "*"
JSON, FORM, UPLOAD = "application/json", "application/x-www-form-urlencoded", "multipart/form-data"
UPLOADS = frozenset({"/v1/files"})
"""Paths to which forms are posted; all others take JSON."""


class Guard:
    """ASGI middleware around the routes: checks `Host` and `Origin`.

    Anybody can point a name at this machine (DNS rebinding). So `Host` must be an address,
    `localhost`, or one of `names`. A browser sends simple posts to any site without a preflight.
    So posts of another `Origin` must have the content type of JSON, which needs a preflight, and a
    post that says it is something else than JSON is refused. `curl -d` says that it sends a form:
    that is accepted of whoever is no browser.

    Args:
        names: host names of this gateway; `*` accepts any.
        origins: those that share the gateway (`gateway.cors_origins`); `*` is any.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str], origins: Iterable[str] = ()) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names if name)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or ANY in self._names:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        changes = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if host and not self._is_own(f"//{host}"):
            error: Exception = Misdirected(
                f"this gateway is not {host[:80]!r}: without keys it answers to addresses, to "
                "localhost, and to the names in `allowed_hosts` of [gateway]"
            )
        elif (
            origin is not None and changes and kind != JSON and not self._is_friendly(origin, host)
        ):
            error = Foreign(
                f"a page of {origin[:80]!r} may not post this: send the content-type "
                "application/json, or name its host in `allowed_hosts` of [gateway]"
            )
        elif changes and not _fits(kind, scope["path"], headers):
            error = WrongType(f"content-type {kind[:80]!r} is not accepted: send application/json")
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

    def _is_friendly(self, origin: str, host: str) -> bool:
        """Whether pages of `origin` may post without a preflight.

        An address is not: anybody has one. It must be loopback, or the one in `Host`.
        """
        if origin in self._origins or ANY in self._origins:
            return True
        if not self._is_own(origin):
            return False
        name = urlsplit(origin).hostname or ""
        return not _is_address(name) or ip_address(name).is_loopback or name == _name(host)


def _fits(kind: str, path: str, headers: Headers) -> bool:
    """Whether a body of the type `kind` may be posted to `path`; an absent type always may."""
    if kind == FORM:
        return "origin" not in headers and "sec-fetch-site" not in headers
    return kind in ("", JSON) or (kind == UPLOAD and path in UPLOADS)


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
