"""Lets pages of other sites use the gateway, where the configuration names them (CORS)."""

from collections.abc import Collection

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

REMEMBERED_S = 600
"""How long a browser may remember that a site is allowed, in seconds."""


def shared(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """`app`, usable by pages of `origins`; by itself if there are none.

    It belongs around the check of API keys: a preflight has no key, and a page may only read why
    its key was refused if that answer says so too. No cookies are accepted, so a page needs a key
    like any other client.

    Args:
        origins: as `https://chat.example`; `*` is any.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_methods=["GET", "HEAD", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["*"],
        max_age=REMEMBERED_S,
    )
