"""The calls that a server has in work: their cancellation and their credit."""

import asyncio
from dataclasses import dataclass, field

from sps2.common.bus import wire
from sps2.common.errors import Cancelled, ServiceError


@dataclass(slots=True)
class Client:
    """A connection that has calls in work."""

    name: bytes
    calls: dict[int, "Call"] = field(default_factory=dict)
    missed: int = 0


@dataclass(slots=True)
class Call:
    """A call in work; it leaves the table when its task has ended, its `finally` included."""

    client: Client
    id: int
    credit: int
    granted: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    is_cancelled: bool = False
    reason: ServiceError | None = None

    def cancel(self, reason: ServiceError | None) -> None:
        """Cancel the handler, once: a second cancellation would interrupt its `finally`."""
        if not self.is_cancelled and self.task is not None:
            self.is_cancelled, self.reason = True, reason
            self.task.cancel()

    def grant(self, items: int) -> None:
        self.credit = min(self.credit + items, wire.MAX_WINDOW)
        self.granted.set()

    async def spend(self, within_s: float | None) -> None:
        """Wait for credit, then use up the credit of one item.

        Raises:
            Cancelled: the client gave no credit for `within_s` seconds.
        """
        if self.credit == 0:
            try:
                async with asyncio.timeout(within_s):
                    while self.credit == 0:
                        self.granted.clear()
                        await self.granted.wait()
            except TimeoutError:
                raise Cancelled(
                    f"the client took nothing of its answer for {within_s:g} s"
                ) from None
        self.credit -= 1
