"""Keeps responses for a while, so that clients can ask for them and go on from them."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from sps2.common.errors import Invalid
from sps2.services.gateway.protocols.responses.answers import Response, as_items
from sps2.services.gateway.protocols.responses.items import Item

MOST = 4096
"""Maximum number of stored responses."""
NOT_FOUND = "response_not_found"


class Stored(msgspec.Struct, frozen=True):
    """A response, and all items that it answers."""

    response: Response
    items: tuple[Item, ...]

    @property
    def conversation(self) -> tuple[Item, ...]:
        """What the next response answers, besides its own input."""
        return *self.items, *as_items(self.response.output)


class Responses:
    """Stored responses, each of one owner; the oldest make room for new ones.

    Any thread may use them: large requests are translated in threads.

    Args:
        max_bytes: most bytes of all together, counted as JSON.
        kept_s: seconds for which a response is kept at most.
        clock: seconds since any fixed time.
    """

    def __init__(
        self, max_bytes: int, kept_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes = max_bytes
        self._kept_s = kept_s
        self._clock = clock
        self._by_id: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0
        self._lock = threading.RLock()

    def put(self, stored: Stored, owner: str) -> None:
        """Store a response, or replace it; one larger than the whole store is not kept."""
        response_id = stored.response.id
        size = len(msgspec.json.encode(stored))
        kept = _Kept(stored, owner, size, self._clock() + self._kept_s)
        with self._lock:
            self._drop(response_id)
            self._by_id[response_id] = kept
            self._bytes += size
            self._trim()

    def get(self, response_id: str, owner: str, field: str | None = None) -> Stored:
        """A stored response.

        Args:
            field: of the request, for the error.

        Raises:
            Invalid: there is none of that id, or it is another owner's.
        """
        with self._lock:
            self._trim()
            kept = self._by_id.get(response_id)
        if kept is None or kept.owner != owner:
            raise Invalid(
                f"no response {response_id[:80]!r} is stored here: responses are kept for "
                f"{self._kept_s / 3600:g} hours, and less if there are many",
                field,
                NOT_FOUND,
            )
        return kept.stored

    def items(self, owner: str) -> dict[str, Item]:
        """All items of an owner's responses by their ids; the latest of an id."""
        with self._lock:
            self._trim()
            all_kept = [*self._by_id.values()]
        return {
            item.id: item
            for kept in all_kept
            if kept.owner == owner
            for item in kept.stored.conversation
            if item.id is not None
        }

    def counters(self) -> dict[str, float]:
        """For heartbeats: what is here, and is lost with this process."""
        with self._lock:
            self._trim()
            return {"responses_stored": float(len(self._by_id))}

    def delete(self, response_id: str, owner: str) -> None:
        """Remove a response. Raises Invalid as `get` does."""
        with self._lock:
            self.get(response_id, owner)
            self._drop(response_id)

    def _drop(self, response_id: str) -> None:
        kept = self._by_id.pop(response_id, None)
        if kept is not None:
            self._bytes -= kept.size

    def _trim(self) -> None:
        now_s = self._clock()
        while self._by_id:
            response_id, oldest = next(iter(self._by_id.items()))
            is_over = self._bytes > self._max_bytes or len(self._by_id) > MOST
            if not is_over and oldest.until_s > now_s:
                return
            self._drop(response_id)


class _Kept(msgspec.Struct, frozen=True):
    stored: Stored
    owner: str
    size: int
    until_s: float
