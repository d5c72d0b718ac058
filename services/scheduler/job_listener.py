"""Passes the progress of a job to the core and to telemetry."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from sps2.common.bus.peer import Peer
from sps2.common.messages import Exchanged, Progress, Room, Shard
from sps2.services.scheduler.events import (
    Chunked,
    Computed,
    Event,
    Granted,
    Grew,
    Moved,
    Parted,
    Prefilled,
    Progressed,
    Shareable,
    Starved,
)

log = logging.getLogger(__name__)


class Publish(Protocol):
    """Publishes a stage of a request, with details."""

    def __call__(self, request: str, stage: str, **detail: str | float) -> None: ...


class Listener(Protocol):
    """Receives the progress of a job."""

    def granted(self, room: Room) -> None: ...
    def advanced(self, progress: Progress) -> None: ...
    def computed(self, seconds: tuple[float, ...], moved: tuple[Moved, ...]) -> None: ...
    def chunked(self) -> None: ...
    def prefilled(self, exchanged: Sequence[Exchanged]) -> None: ...
    def shareable(self) -> None: ...
    def starved(self, pages: int) -> None: ...
    def grew(self, room: Room) -> None: ...
    def lost(self, shard: Shard, peer: Peer) -> None: ...
    def parted(self, shard: Shard, peer: str) -> None: ...


class Listening:
    """The `Listener` of a request's jobs.

    Args:
        handle: takes events for the core.
        lose: called with a shard that was lost.
    """

    def __init__(
        self,
        request: str,
        handle: Callable[[Event], None],
        publish: Publish,
        lose: Callable[[Shard, Peer], None],
    ) -> None:
        self._request = request
        self._handle = handle
        self._publish = publish
        self._lose = lose

    def granted(self, room: Room) -> None:
        self._handle(Granted(self._request, room))
        self._publish(self._request, "prefill")

    def advanced(self, progress: Progress) -> None:
        self._handle(Progressed(self._request, progress.processed - progress.cached))
        self._publish(self._request, "prefill", processed=progress.processed)

    def computed(self, seconds: tuple[float, ...], moved: tuple[Moved, ...]) -> None:
        self._handle(Computed(self._request, seconds, moved))

    def chunked(self) -> None:
        self._handle(Chunked(self._request))

    def prefilled(self, exchanged: Sequence[Exchanged]) -> None:
        self._handle(Prefilled(self._request))
        self._publish(
            self._request,
            "transfer",
            compute_s=max(each.compute_s for each in exchanged),
            exchange_s=sum(each.exchange_s for each in exchanged),
            hidden_s=sum(each.hidden_s for each in exchanged),
            exchange_bytes=sum(sum(each.sent_bytes.values()) for each in exchanged),
        )

    def shareable(self) -> None:
        self._handle(Shareable(self._request))
        self._publish(self._request, "decode")

    def starved(self, pages: int) -> None:
        self._handle(Starved(self._request, pages))

    def grew(self, room: Room) -> None:
        self._handle(Grew(self._request, room))

    def lost(self, shard: Shard, peer: Peer) -> None:
        self._lose(shard, peer)

    def parted(self, shard: Shard, peer: str) -> None:
        log.info("request %s: %s has lost %s", self._request, shard.id, peer)
        self._handle(Parted(shard.peer.name, peer))
