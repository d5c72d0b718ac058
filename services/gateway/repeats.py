"""Answers that may be asked for again: requests with an `Idempotency-Key` are run once.

Such an answer goes on if its client leaves. The same request with the same key gets all of it,
while it runs and for a while after; another request with that key is refused.
"""

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import msgspec

from sps2.common.bus.peer import Peer
from sps2.common.errors import Invalid, Refused
from sps2.common.messages import Request, Stream, Struct
from sps2.services.gateway.http.resuming import not_kept
from sps2.services.gateway.kept_answer import Answer
from sps2.services.gateway.others.gateways import Others

T = TypeVar("T", bound=msgspec.Struct)

REUSED = "idempotency_key_reused"
HEADER = "idempotency-key"
MOST_CHARS = 255
ANSWER_BYTES = 2048
"""Estimated bytes of an answer besides its parts."""


class Asked(NamedTuple):
    """A request: whose it is, the key that it came with, and the digest of what it asks."""

    owner: str
    key: str
    digest: bytes

    @property
    def place(self) -> tuple[str, str]:
        return self.owner, self.key


def asked(owner: str, key: str, path: str, body: msgspec.Struct) -> Asked:
    """A request with its digest."""
    text = path.encode() + b"\n" + msgspec.json.encode(body)
    return Asked(owner, key, hashlib.blake2b(text, digest_size=16).digest())


class Known(Struct, frozen=True):
    is_here: bool


class FindAnswer(Request[Known], frozen=True):
    """Gateway to gateway: say whether you have the answer to a request with a key. Invalid if you
    have that of another request with this key."""

    owner: str
    key: str
    digest: bytes


class Part(Struct, frozen=True):
    """A chunk of an answer, as JSON."""

    chunk: bytes


class FollowAnswer(Stream[Part], frozen=True):
    """Gateway to gateway: send the answer that `FindAnswer` found."""

    owner: str
    key: str
    digest: bytes


@dataclass
class _Kept:
    digest: bytes
    answer: Answer
    until_s: float = math.inf
    """When it is forgotten, which is known from its end on."""


class Repeats:
    """The answers to requests with a key.

    Args:
        max_bytes: of all of them; those that have ended make room first. 0 keeps none.
        kept_s: seconds for which an answer is kept after its end.
        clock: seconds since any fixed time.
    """

    def __init__(
        self,
        max_bytes: int,
        kept_s: float,
        others: Others,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._kept_s = kept_s
        self._others = others
        self._clock = clock
        self._by_key: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._running: set[Answer] = set()
        self._bytes = 0

    @property
    def are_awaited(self) -> bool:
        """Whether one runs that somebody reads."""
        return any(answer.is_read for answer in self._running)

    async def answer(
        self,
        request: Asked,
        chunks: AsyncGenerator[T, None],
        kind: type[T],
        continued: str | None = None,
    ) -> AsyncGenerator[T, None]:
        """The answer to a request: `chunks`, or what there is of the same request before it.

        Args:
            continued: id of the answer that is to go on; `chunks` will not do for it.

        Raises:
            Invalid: the key was used for another request, or the answer to go on is not kept.
            PeerLost: a gateway that may have the answer stands still.
        """
        if not self._max_bytes and continued is None:
            return chunks
        holder = None if self._find(request) else await self._elsewhere(request, continued)
        found = self._find(request)
        if holder is None and found is None:
            if continued is not None:
                await chunks.aclose()
                raise not_kept()
            return _decoded(self._begin(request, chunks), kind)
        await chunks.aclose()
        return _decoded(_followed(holder, request) if found is None else found.read(), kind)

    async def find_answer(self, request: FindAnswer) -> Known:
        return Known(self._find(Asked(request.owner, request.key, request.digest)) is not None)

    async def follow_answer(self, request: FollowAnswer) -> AsyncIterator[Part]:
        found = self._find(Asked(request.owner, request.key, request.digest))
        if found is None:
            raise Refused("the answer made room for others meanwhile: ask again")
        async with aclosing(found.read()) as parts:
            async for part in parts:
                yield Part(part)

    async def close(self) -> None:
        """End all that run."""
        await asyncio.gather(*(answer.close() for answer in [*self._running]))

    def _find(self, request: Asked) -> Answer | None:
        kept = self._by_key.get(request.place)
        if kept is not None and kept.until_s <= self._clock():
            self._drop(request.place)
            kept = None
        if kept is None:
            return None
        if kept.digest != request.digest:
            raise Invalid(
                f"the idempotency key {request.key[:80]!r} came with another request before: a key "
                "is for one request, and for repeating it",
                None,
                REUSED,
            )
        return kept.answer

    async def _elsewhere(self, request: Asked, continued: str | None) -> Peer | None:
        """The other gateway that has the answer. One that has ended has lost its answers."""
        peers = [*self._others.peers.values()]
        if continued is not None:
            named = self._others.holder(continued)
            peers = [] if named is None else [named]
        calls = (self._is_at(peer, request) for peer in peers)
        found = await asyncio.gather(*calls, return_exceptions=True)
        for peer, is_there in zip(peers, found, strict=True):
            if is_there is True:
                return peer
        for error in found:
            if isinstance(error, BaseException):
                raise error
        return None

    async def _is_at(self, peer: Peer, request: Asked) -> bool:
        known = await self._others.ask(peer, FindAnswer(*request))
        return known is not None and known.is_here

    def _begin(
        self, request: Asked, chunks: AsyncGenerator[T, None]
    ) -> AsyncGenerator[bytes, None]:
        answer = Answer(chunks, self._grow, lambda: self._ended(request, answer))
        parts = answer.read()  # before it may have to make room
        self._running.add(answer)
        self._by_key[request.place] = _Kept(request.digest, answer)
        self._grow(ANSWER_BYTES)
        return parts

    def _grow(self, size: int) -> None:
        self._bytes += size
        while self._bytes > self._max_bytes and self._by_key:
            over = (key for key, kept in self._by_key.items() if kept.answer.is_over)
            self._drop(next(over, next(iter(self._by_key))))

    def _ended(self, request: Asked, answer: Answer) -> None:
        self._running.discard(answer)
        kept = self._by_key.get(request.place)
        if kept is None or kept.answer is not answer:
            return
        if answer.error is None:
            kept.until_s = self._clock() + self._kept_s
        else:
            self._drop(request.place)  # so that it can be tried again

    def _drop(self, key: tuple[str, str]) -> None:
        answer = self._by_key.pop(key).answer
        self._bytes -= ANSWER_BYTES
        answer.give_up()


async def _followed(peer: Peer | None, request: Asked) -> AsyncGenerator[bytes, None]:
    assert peer is not None
    async with peer.stream(FollowAnswer(*request)) as parts:
        async for part in parts:
            yield part.chunk


async def _decoded(parts: AsyncGenerator[bytes, None], kind: type[T]) -> AsyncGenerator[T, None]:
    async with aclosing(parts):
        async for part in parts:
            yield msgspec.json.decode(part, type=kind)
