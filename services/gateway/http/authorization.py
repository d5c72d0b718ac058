"""Accepts HTTP requests with a valid API key, within the quota of the key."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sps2.common.errors import ServiceError
from sps2.services.gateway.http.problems import Unauthorised
from sps2.services.gateway.http.sse import failed
from sps2.services.gateway.keys.api_keys import Register
from sps2.services.gateway.keys.quota import Account

OPEN = frozenset({"/health", "/ready", "/docs", "/openapi.json"})
"""Paths that expose no request data, open to callers without a key."""


class Doorman:
    """ASGI middleware around the routes: checks API keys and quotas."""

    def __init__(self, app: ASGIApp, register: Register) -> None:
        self._app = app
        self._register = register

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        try:
            account = self._register.account(_authorization(Headers(scope=scope)))
        except Unauthorised as error:
            await failed(error)(scope, receive, send)
            return

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(account.headers())
            await send(message)

        scope.setdefault("state", {})["account"] = account
        try:
            if scope["method"] == "POST":
                account.ask()
        except ServiceError as error:
            await failed(error)(scope, receive, send_with_limits)
            return
        await self._app(scope, receive, send_with_limits)


def _authorization(headers: Headers) -> str:
    """The `Authorization` header, or the key that Anthropic's clients send instead."""
    key = headers.get("x-api-key", "")
    return headers.get("authorization") or (f"Bearer {key}" if key else "")


def account_of(request: Request) -> Account | None:
    """The account of the client; None if no API keys are required."""
    account: Account | None = getattr(request.state, "account", None)
    return account
