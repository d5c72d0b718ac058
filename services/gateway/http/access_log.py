"""Counts every HTTP answer by route, method and status, and logs it."""

import logging
import time
from typing import Literal

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sps2.services.gateway.monitoring.request_metrics import Metrics

log = logging.getLogger(__name__)

Logged = Literal["all", "refused", "none"]
OTHER = "other"
"""Stands for an unknown route or method."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PROBES = frozenset({"/health", "/ready", "/metrics"})
"""Paths that are polled; their refusals are not logged, since they are reported elsewhere."""


class Visits:
    """ASGI middleware inside of `RequestIds`, around everything else.

    Args:
        routes: the application's routes; their paths are metric labels.
        logged: which requests are logged.
    """

    def __init__(
        self, app: ASGIApp, routes: list[BaseRoute], metrics: Metrics, logged: Logged
    ) -> None:
        self._app = app
        self._routes = routes
        self._metrics = metrics
        self._logged = logged

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        since_s = time.monotonic()
        code, sent, why = 499, 0, ""

        async def counted(message: Message) -> None:
            nonlocal code, sent
            if message["type"] == "http.response.start":
                code = message["status"]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        is_head = scope["method"] == "HEAD"
        # every GET route answers HEAD; the connection leaves out the body
        routed = {**scope, "method": "GET"} if is_head else scope
        try:
            await self._app(routed, receive, counted)
        except Exception:
            code = 500
            raise
        finally:
            seconds = time.monotonic() - since_s
            route = self._route(routed)
            method = scope["method"] if scope["method"] in _METHODS else OTHER
            self._metrics.answered(route, method, code, seconds)
            why = scope["state"].get("why", "")
            if self._logged == "all" or (
                self._logged == "refused" and code >= 400 and scope["path"] not in _PROBES
            ):
                _write(scope, code, seconds, sent, why)

    def _route(self, scope: Scope) -> str:
        for route in self._routes:
            if route.matches(scope)[0] != Match.NONE:
                return str(getattr(route, "path", OTHER))
        return OTHER


def _write(scope: Scope, code: int, seconds: float, sent: int, why: str) -> None:
    client = scope.get("client")
    account = scope["state"].get("account")
    # still encoded, so that a client cannot add lines to the log; without the query
    path = scope["raw_path"].decode("ascii", "replace")[:256]
    fields = {
        "method": scope["method"],
        "path": path,
        "code": code,
        "seconds": round(seconds, 4),
        "bytes": sent,
        "client": client[0] if client else "",
        "request_id": scope["state"].get("name", ""),
        "key": account.name if account else "",
        "error": why,
    }
    log.info(
        "%s %s %d in %.1f ms, %d bytes, to %s, request %s%s%s",
        scope["method"],
        path,
        code,
        1000 * seconds,
        sent,
        fields["client"] or "-",
        fields["request_id"],
        f", key {fields['key']}" if account else "",
        f": {why}" if why else "",
        extra={"fields": fields},
    )
