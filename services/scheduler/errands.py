"""Calls that the core asks for, and that no request waits for; their answers become events."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from sps2.common.errors import ServiceError
from sps2.common.messages import Measure, Measures, Urge
from sps2.services.scheduler.actions import ChangeUrgency, Find, Probe
from sps2.services.scheduler.events import Event, Measured
from sps2.services.scheduler.lookups import Lookups
from sps2.services.scheduler.members import Members

PROBE_S = 20.0
"""How long a shard may take to measure itself and its link."""

log = logging.getLogger(__name__)


class Errands:
    """Makes calls, and passes their answers to the core.

    Args:
        lookups: finds cached pages.
        handle: takes events for the core.
    """

    def __init__(self, lookups: Lookups, members: Members, handle: Callable[[Event], None]) -> None:
        self._lookups = lookups
        self._members = members
        self._handle = handle
        self._running: set[asyncio.Task[None]] = set()

    def run(self, action: Find | ChangeUrgency | Probe) -> None:
        """Carry out an action without waiting for its end."""
        match action:
            case Find():
                self._begin(self._lookups.find(action))
            case ChangeUrgency():
                for shard in action.plan.group:
                    self._begin(self._urge(shard, action))
            case Probe():
                self._begin(self._probe(action))

    def close(self) -> None:
        """Make no more calls."""
        for task in self._running:
            task.cancel()

    def _begin(self, call: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(call)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _urge(self, shard: str, action: ChangeUrgency) -> None:
        if peer := self._members.peers.get(shard):
            with suppress(ServiceError):  # whoever is lost computes nothing
                await peer.call(Urge(action.request, action.epoch, action.urgency))

    async def _probe(self, action: Probe) -> None:
        measures: Measures | None = None
        peer, partner = self._members.peers.get(action.shard), self._members.shard(action.partner)
        if peer is not None and partner is not None:
            try:
                measures = await peer.call(Measure(partner.peer, action.computes), PROBE_S)
            except ServiceError as error:
                log.info("%s could not measure: %s", action.shard, error)
        self._handle(Measured(action.shard, action.partner, measures))
