"""What the routes of every protocol share: how a request comes in, and when it may."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TypeVar

from fastapi import Request

from sps2.common.api import ChatRequest
from sps2.services.gateway.gateway import Gateway
from sps2.services.gateway.http.body import Bodies, Body
from sps2.services.gateway.http.error_shapes import Shape
from sps2.services.gateway.http.openapi import Family
from sps2.services.gateway.http.problems import NotReady
from sps2.services.gateway.http.request_id import caller_of, name_of
from sps2.services.gateway.http.sse import KEEP_ALIVE_S
from sps2.services.gateway.keys.quota import Account
from sps2.services.gateway.threads import LONG_TEXT, threaded

Lowered = Callable[[ChatRequest], ChatRequest]
"""Gives a chat the low priority of a batch."""
Batched = Callable[[bytes, str, Account | None, Lowered], Awaitable[object]]
"""Answers a body in a batch, given the answer's name and for whom it is."""

T = TypeVar("T")
R = TypeVar("R")


def unready(reason: str) -> NotReady:
    """The error while no requests are accepted."""
    return NotReady(f"the cluster is not ready: it waits for {reason}")


class Door:
    """The way in for HTTP requests of any protocol.

    Args:
        gateway: answers them.
        bodies: the bodies in memory.
        obstacle: why no requests are accepted, in words; empty when they are.
        keep_alive_s: silence on a stream after which a sign of life is sent.

    Attributes:
        batched: answers requests in batches, by path, for protocols other than OpenAI's older ones.
        error_shapes: the form of error answers, by path, for protocols other than OpenAI's.
        id_headers: other names of the header `x-request-id`, by path, for the same.
        families: the types of these protocols, for the OpenAPI document.
    """

    def __init__(
        self,
        gateway: Gateway,
        bodies: Bodies,
        obstacle: Callable[[], Awaitable[str]],
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self.gateway = gateway
        self.bodies = bodies
        self.keep_alive_s = keep_alive_s
        self.error_shapes: dict[str, Shape] = {}
        self.batched: dict[str, Batched] = {}
        self.id_headers: dict[str, str] = {}
        self.families: list[Family] = []
        self._obstacle = obstacle

    async def check_ready(self) -> None:
        """Raise NotReady, saying what is missing, unless requests are accepted."""
        if reason := await self._obstacle():
            raise unready(reason)

    @asynccontextmanager
    async def entered(self, request: Request, prefix: str, kind: type[T]) -> AsyncIterator[Body[T]]:
        """The body of a request that is accepted; a failure before is counted and traced.

        Args:
            prefix: of the answer's id.
            kind: the type of the body.

        Raises:
            Exception: see `Bodies.read`, `check_ready` and `Gateway.entered`.
        """
        async with self.translated(request, prefix, kind, lambda value: value) as body:
            yield body

    @asynccontextmanager
    async def translated(
        self,
        request: Request,
        prefix: str,
        kind: type[T],
        translate: Callable[[T], R],
        aside: bool = False,
        before: Callable[[T], Awaitable[None]] | None = None,
    ) -> AsyncIterator[Body[R]]:
        """As `entered`; the body's value is what `translate` makes of it.

        Args:
            translate: may raise Invalid, which is counted and traced too. It runs in a thread if
                the body is large.
            aside: whether it does so in any case: a small body may refer to much.
            before: fetches what it needs.
        """
        async with AsyncExitStack() as stack:
            with self.gateway.entered(name_of(request), prefix, caller_of(request)):
                body = await stack.enter_async_context(self.bodies.read(request, kind))
                if before is not None:
                    await before(body.value)
                size = max(body.size, LONG_TEXT) if aside else body.size
                value = await threaded(size, partial(translate, body.value))
                made = Body(value, body.size, body.release)
                await self.check_ready()
            yield made
