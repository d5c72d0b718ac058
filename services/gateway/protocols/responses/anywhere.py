"""Stored responses, here or at the gateway that made them, whose number their ids have."""

from collections.abc import Iterable

import msgspec

from sps2.common.messages import Request, Struct
from sps2.services.gateway.others.gateways import Others
from sps2.services.gateway.protocols.responses.background import Background
from sps2.services.gateway.protocols.responses.items import Item
from sps2.services.gateway.protocols.responses.requests import ResponsesRequest
from sps2.services.gateway.protocols.responses.store import Responses, Stored
from sps2.services.gateway.protocols.responses.translate import Earlier


class Found(Struct, frozen=True):
    """A `Stored`, or a list of items, as JSON."""

    body: bytes


class FindResponse(Request[Found], frozen=True):
    """Gateway to gateway: return a stored response of an owner. Invalid, naming `field`, if there
    is none."""

    response: str
    owner: str
    field: str | None = None


class EndResponse(Request[Found], frozen=True):
    """Gateway to gateway: cancel a response if it is in work, and return it; or `forget` it too."""

    response: str
    owner: str
    forget: bool


class FindItems(Request[Found], frozen=True):
    """Gateway to gateway: return the items with these ids, as far as an owner's responses have
    them."""

    items: tuple[str, ...]
    owner: str


class Anywhere:
    """The stored responses of all gateways.

    Attributes:
        here: those of this gateway.
        background: those in work here without a client.
    """

    def __init__(self, here: Responses, others: Others) -> None:
        self.here = here
        self.background = Background()
        self._others = others

    async def get(self, response_id: str, owner: str, field: str | None = None) -> Stored:
        """A stored response.

        Raises:
            Invalid: see `Responses.get`.
            PeerLost: the gateway that made it is away.
        """
        holder = self._others.holder(response_id)
        if holder is None:
            return self.here.get(response_id, owner, field)
        found = await self._others.call(holder, FindResponse(response_id, owner, field))
        return msgspec.json.decode(found.body, type=Stored)

    async def end(self, response_id: str, owner: str, forget: bool = False) -> Stored:
        """Cancel a response that is in work, and remove it if it is to be forgotten; as `get`."""
        holder = self._others.holder(response_id)
        if holder is not None:
            found = await self._others.call(holder, EndResponse(response_id, owner, forget))
            return msgspec.json.decode(found.body, type=Stored)
        self.here.get(response_id, owner)
        await self.background.cancel(response_id)
        ended = self.here.get(response_id, owner)
        if forget:
            self.here.delete(response_id, owner)
        return ended

    async def earlier(self, request: ResponsesRequest, owner: str) -> Earlier:
        """What a request refers to; as `get`."""
        if not self._others:
            return self.here
        previous, items = None, dict[str, Item]()
        if request.previous_response_id is not None:
            name = "previous_response_id"
            previous = await self.get(request.previous_response_id, owner, name)
        if missing := {*_references(request)} - self.here.items(owner).keys():
            asked = FindItems(tuple(sorted(missing)), owner)
            for found in await self._others.all(Found(b"[]"), asked):
                listed = msgspec.json.decode(found.body, type=list[Item])
                items |= {item.id: item for item in listed if item.id is not None}
        return _Fetched(self.here, previous, items)

    async def find_response(self, request: FindResponse) -> Found:
        found = self.here.get(request.response, request.owner, request.field)
        return Found(msgspec.json.encode(found))

    async def end_response(self, request: EndResponse) -> Found:
        found = await self.end(request.response, request.owner, request.forget)
        return Found(msgspec.json.encode(found))

    async def find_items(self, request: FindItems) -> Found:
        known = self.here.items(request.owner)
        found = [known[each] for each in request.items if each in known]
        return Found(msgspec.json.encode(found))


class _Fetched:
    """What is stored here, and what was fetched for one request."""

    def __init__(self, here: Responses, previous: Stored | None, items: dict[str, Item]) -> None:
        self._here = here
        self._previous = previous
        self._items = items

    def get(self, response_id: str, owner: str, field: str | None = None) -> Stored:
        return self._previous or self._here.get(response_id, owner, field)

    def items(self, owner: str) -> dict[str, Item]:
        return self._items | self._here.items(owner)


def _references(request: ResponsesRequest) -> Iterable[str]:
    if not isinstance(request.input, str):
        for item in request.input:
            if item.kind == "item_reference" and item.id is not None:
                yield item.id
