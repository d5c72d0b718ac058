"""A scheduler and an owner whose tokens cost nothing: what stands behind the gateway here."""

import asyncio
import random
import time
from collections.abc import AsyncIterator

from sps2.common.messages import (
    Exchanged,
    Finished,
    FirstToken,
    FleetStatus,
    Follow,
    Placed,
    Placement,
    Scheme,
    ShardStatus,
    ShowFleet,
    Submit,
    Token,
)
from sps2.common.spans import Span

OWNER = "decode-0"
WORD = 260
"""A token that is a whole word, so that each is a chunk."""


class Actors:
    """Answers every prompt with as many tokens as it asks for, `rate` a second; 0: at once.

    in_step: all streams get theirs at the same moments, as those of one batch do.
    sent_s: when each token left, by (request, index); seconds of `time.perf_counter`.
    """

    def __init__(self) -> None:
        self.rate = 0.0
        self.in_step = False
        self.address = ""
        self.sent_s: dict[tuple[str, int], float] = {}
        self._asked: dict[str, tuple[int, asyncio.Event]] = {}

    async def submit(self, request: Submit) -> AsyncIterator[Placed | FirstToken | Finished]:
        tokens, ended = request.sampling.max_tokens, asyncio.Event()
        self._asked[request.request] = tokens, ended
        prompt = len(request.prompt) // 4
        place = Placement(OWNER, Span(0, prompt), 1)
        yield Placed(1, OWNER, self.address, 1, (place,), "exact", Scheme("gather"), {})
        first = self._token(request.request, 0, tokens)
        yield FirstToken(first, None, 0.0, (Exchanged({}, 0.0, 0.0, 0.0, 0.0),))
        await ended.wait()
        yield Finished(tokens, 0, 0, 0)

    async def follow(self, request: Follow) -> AsyncIterator[Token]:
        tokens, ended = self._asked[request.request]
        began = time.perf_counter()
        if self.rate:
            began = (began * self.rate // 1 + (1 if self.in_step else random.random())) / self.rate
        for index in range(request.start, tokens):
            if self.rate and (wait := began + index / self.rate - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            yield self._token(request.request, index, tokens)
        ended.set()

    async def show_fleet(self, request: ShowFleet) -> FleetStatus:
        shard = ShardStatus(OWNER, "decode", "ready", 1, self.address)
        return FleetStatus((shard,), (), "", True)

    def _token(self, request: str, index: int, tokens: int) -> Token:
        self.sent_s.setdefault((request, index), time.perf_counter())
        return Token(index, WORD, None, "length" if index == tokens - 1 else None)
