"""Adds pages to an answer that grows."""

import asyncio
import logging

from msgspec.structs import replace

from sps2.common.bus.peer import Peer
from sps2.common.errors import Refused, ServiceError
from sps2.common.messages import Extend, Grow, Submit
from sps2.common.spans import pages_for
from sps2.services.scheduler.job_listener import Listener
from sps2.services.scheduler.plan import Plan

AGAIN_S = 0.02
"""Pause before pages are requested again; it doubles with every refusal."""
LONGEST_AGAIN_S = 0.5

log = logging.getLogger(__name__)


class Growth:
    """The pages of one answer, at the directory and at its owner.

    Args:
        tokens: of the answer, for which pages are added at once.
        owner: the plan's owner on the bus.
    """

    def __init__(
        self,
        submit: Submit,
        epoch: int,
        plan: Plan,
        tokens: int,
        directory: Peer,
        owner: Peer,
        listener: Listener,
    ) -> None:
        self.placements = plan.placements
        """Those of the plan, with the pages added since."""
        self._request = submit.request
        self._epoch = epoch
        self._page_tokens = plan.prefix.page_tokens
        most = plan.placements[-1].span.tokens + submit.sampling.left
        self._most_pages = pages_for(most, self._page_tokens)
        self._step_pages = pages_for(tokens, self._page_tokens)
        self._directory = directory
        self._owner = owner
        self._listener = listener

    @property
    def answer_tokens(self) -> int:
        """The length of answer that there is room for."""
        place = self.placements[-1]
        return place.pages * self._page_tokens - place.span.tokens

    async def grow(self) -> None:
        """Add pages; waits until there are some.

        Raises:
            PeerLost: the owner was lost.
            Cancelled: the owner does not hold the request any more.
        """
        place = self.placements[-1]
        pages = min(self._step_pages, self._most_pages - place.pages)
        if pages <= 0:
            return
        pause_s = AGAIN_S
        while not await self._extended(pages):
            if pages > 1:
                pages = 1
                continue
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_AGAIN_S)
        capacity = self.placements[-1].pages * self._page_tokens
        while True:
            try:
                await self._owner.call(Grow(self._request, self._epoch, capacity))
                return
            except Refused:  # whoever had the pages has not released them there yet
                await asyncio.sleep(AGAIN_S)

    async def _extended(self, pages: int) -> bool:
        """Whether the directory added pages to the lease; reports it if none are free."""
        place = self.placements[-1]
        extend = Extend(self._request, self._epoch, place.shard, pages)
        try:
            room = await self._directory.call(extend)
        except Refused:
            if pages == 1:
                self._listener.starved(pages)
            return False
        except ServiceError as error:  # a directory that was lost learns of the lease soon
            log.info("request %s: %s; asks for pages again", self._request, error)
            return False
        self.placements = (*self.placements[:-1], replace(place, pages=place.pages + pages))
        self._listener.grew(room)
        return True
