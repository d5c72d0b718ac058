"""Single measurements of a running cluster: a prefill, and the decode steps of a batch."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

from sps2.cli.render import counted
from sps2.cli.simulator.fitting import Behind, Prompt, Share, Step
from sps2.common.api import CompletionChunk
from sps2.common.api.answer_ids import name_in
from sps2.common.api.usage import Sps2Usage
from sps2.common.errors import Refused
from sps2.common.messages import ClusterStatus, PrefillOptions, RequestStatus
from sps2.services.scheduler.partition import Capacity, Partition
from sps2.services.scheduler.schemes import Schemes

POLL_S = 0.05
QUIET_S = 20.0
"""How long other requests may go on before the measurement is given up."""
WINDOW_S = 0.8
LONGEST_WINDOW_S = 4.0
WINDOW_STEPS = 16
"""Steps are watched until there were so many and `WINDOW_S` is over, or at most
`LONGEST_WINDOW_S`."""
ANSWER_TOKENS = 512
"""Longest answer of which steps are watched."""


class Asker(Protocol):
    """What is needed of an SDK client."""

    def complete_stream(
        self, prompt: Sequence[int], **parameters: Any
    ) -> AsyncGenerator[CompletionChunk, None]:
        """As `AsyncClient.complete_stream`."""
        ...

    async def status(self) -> ClusterStatus:
        """As `AsyncClient.status`."""
        ...


@dataclass(frozen=True)
class Target:
    """The cluster that is measured.

    ids: token ids that prompts are made of. longest: tokens of the longest prompt that fits.
    capacity: of a shard that keeps what it prefills, in tokens; 0: others keep it.
    """

    schemes: Schemes
    ids: Sequence[int]
    longest: int
    prefillers: int
    decoders: int
    page_tokens: int
    decode_span_tokens: int
    capacity: int = 0

    def partition(self, tokens: int, degree: int) -> Partition:
        """How `degree` shards share a prompt, or fewer if it is short."""
        degree = self.schemes.degree(tokens, degree, self.page_tokens if self.capacity else 1)
        options = PrefillOptions(sp_degree=degree, method="gather")
        room = Capacity((self.capacity,) * degree, self.page_tokens) if self.capacity else None
        return self.schemes.choose(tokens, degree, options, room)


class Bytes(NamedTuple):
    """Bytes between the shards of a prefill: by formula, and as counted."""

    predicted: int
    sent: int


class _Answer(NamedTuple):
    ttft_s: float
    usage: Sps2Usage


@dataclass
class _Watched:
    """The tokens of one answer so far: when each came, and its request's name."""

    name: str = ""
    came: list[tuple[float, int]] = field(default_factory=list)


class Probes:
    """Measures with requests of its own; the cluster must have no others.

    Args:
        rng: makes prompts that no cache has.
    """

    def __init__(self, client: Asker, target: Target, rng: random.Random) -> None:
        self.asked = 0
        """Requests so far."""
        self.exchanged: list[Bytes] = []
        self._client = client
        self._target = target
        self._rng = rng
        self._document: list[int] = []

    async def prefill(self, tokens: int, degree: int = 1, copies: int = 1) -> Prompt:
        """Measure the prefill of a prompt that `degree` shards share, or of several at once."""
        await self.quiet()
        asked = (self._prefill(tokens, degree) for _ in range(copies))
        answers = await asyncio.gather(*asked)
        usages = [answer.usage for answer in answers]
        partition = self._target.partition(tokens, degree)
        shares = [Share(tokens, tokens * tokens / 2)] * copies
        is_shared = len(partition.spans) > 1
        if is_shared:
            spans = [span for own in partition.spans for span in own]
            shares = [
                Share(span.tokens, span.tokens * (span.tokens / 2 + span.start)) for span in spans
            ]
            self.exchanged += [
                Bytes(usage.predicted_exchange_bytes, usage.exchange_bytes) for usage in usages
            ]
        return Prompt(
            tuple(shares),
            sum(answer.ttft_s for answer in answers) / copies,
            max(usage.prefill_s for usage in usages),
            usages[0].attention_s if len(shares) == 1 else 0.0,
            is_shared,
            2 * sum(partition.predicted_bytes.values()) / len(partition.spans),
            usages[0].exchange_s,
            usages[0].chunks,
        )

    async def behind(self, cached: int, tokens: int) -> Behind | None:
        """Measure a prefill of `tokens` tokens behind about `cached` cached ones on another shard.

        None if none of them were cached on another shard.
        """
        await self.quiet()
        text = self._rng.choices(self._target.ids, k=cached + tokens)
        salt = uuid4().hex
        await self._prefill(cached, 1, text[:cached], salt)
        answer = await self._prefill(cached + tokens, 1, text, salt)
        usage = answer.usage
        found = usage.cached_tokens
        if not found or not usage.exchange_bytes_by_purpose.get("prefix_q"):
            return None
        return Behind(found, cached + tokens - found, answer.ttft_s)

    async def steps(self, sequences: int, context: int) -> list[Step]:
        """Measure decode steps of `sequences` answers to prompts of `context` tokens, by shard.

        The prompts begin alike, so that hardly anything of them is computed twice.
        """
        await self.quiet()
        watched = [_Watched() for _ in range(sequences)]
        tasks = [asyncio.create_task(self._decode(context, each)) for each in watched]
        try:
            while any(len(each.came) < 2 for each in watched):
                if any(task.done() for task in tasks):
                    return []  # it was over before all had begun
                await self._wait(tasks)
            running, start_s = (await self._client.status()).requests, perf_counter()
            while not self._is_long_enough(watched, start_s) and not any(t.done() for t in tasks):
                await self._wait(tasks)
            stop_s = min(perf_counter(), *(each.came[-1][0] for each in watched))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return _by_owner(watched, running, start_s, stop_s)

    async def quiet(self) -> None:
        """Wait until the cluster has no requests. Raises Refused if it does not get there."""
        end_s = perf_counter() + QUIET_S
        while running := (await self._client.status()).requests:
            if perf_counter() > end_s:
                raise Refused(
                    f"the cluster has {counted(len(running), 'request')} of others under way, "
                    "which would distort the measurement: try again when it is idle"
                )
            await asyncio.sleep(POLL_S)

    async def _prefill(
        self, tokens: int, degree: int, text: Sequence[int] = (), salt: str = ""
    ) -> _Answer:
        self.asked += 1
        ids = text or self._rng.choices(self._target.ids, k=tokens)
        settings: dict[str, Any] = {
            "max_tokens": 1,
            "temperature": 0.0,
            "ignore_eos": True,
            "cache_salt": salt or uuid4().hex,  # an earlier run may have had the same seed
            "sps2": {"sp_degree": degree, "attention": "exact"}
            | ({"method": "gather"} if degree > 1 else {}),
        }
        start_s = perf_counter()
        first_s, usage = None, None
        async for chunk in self._client.complete_stream(ids, **settings):
            if first_s is None and chunk.choices:
                first_s = perf_counter()
            if chunk.usage:
                usage = chunk.usage.sps2
        assert first_s is not None
        assert usage is not None
        return _Answer(first_s - start_s, usage)

    async def _decode(self, context: int, watched: _Watched) -> None:
        self.asked += 1
        missing = max(0, context - len(self._document))
        self._document += self._rng.choices(self._target.ids, k=missing)
        settings: dict[str, Any] = {
            "max_tokens": max(WINDOW_STEPS, min(ANSWER_TOKENS, self._target.longest - context)),
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "sps2": {"attention": "exact"},
        }
        async for chunk in self._client.complete_stream(self._document[:context], **settings):
            watched.name = name_in(chunk.id)
            if chunk.choices and chunk.usage:
                watched.came.append((perf_counter(), chunk.usage.completion_tokens))

    @staticmethod
    async def _wait(tasks: Sequence["asyncio.Task[None]"]) -> None:
        await asyncio.sleep(POLL_S / 5)
        for task in tasks:
            if task.done():
                task.result()  # raises what it ended with

    @staticmethod
    def _is_long_enough(watched: Sequence[_Watched], start_s: float) -> bool:
        elapsed_s = perf_counter() - start_s
        steps = min(each.came[-1][1] - _tokens_at(each.came, start_s) for each in watched)
        is_enough = elapsed_s >= WINDOW_S and steps >= WINDOW_STEPS
        return is_enough or elapsed_s >= LONGEST_WINDOW_S


def _by_owner(
    watched: Sequence[_Watched], running: Sequence[RequestStatus], start_s: float, stop_s: float
) -> list[Step]:
    """The steps of each shard that decoded some of the answers."""
    status = {name_in(each.request): each for each in running}
    if len(status) != len(watched) or any(each.name not in status for each in watched):
        return []  # somebody else's request was there too
    keys: Counter[str] = Counter()
    paces: dict[str, list[float]] = {}
    holders: dict[str, set[str]] = {}
    for each in watched:
        inside = [(at_s, count) for at_s, count in each.came if start_s <= at_s <= stop_s]
        if len(inside) < 2 or inside[-1][1] == inside[0][1]:
            return []
        pace_s = (inside[-1][0] - inside[0][0]) / (inside[-1][1] - inside[0][1])
        request = status[each.name]
        paces.setdefault(request.owner, []).append(pace_s)
        of_owner = holders.setdefault(request.owner, {request.owner})
        for place in request.placements:
            keys[place.shard] += sum(span.tokens for span in (place.span, *place.shared))
            of_owner.add(place.shard)
        keys[request.owner] += (inside[0][1] + inside[-1][1]) // 2
    return [
        Step(
            len(own),
            max(keys[shard] for shard in holders[owner]),
            sum(own) / len(own),
            sum(keys[shard] > 0 for shard in holders[owner]) > 1,
            len(paces),
        )
        for owner, own in paces.items()
    ]


def _tokens_at(came: Sequence[tuple[float, int]], at_s: float) -> int:
    return max((count for when_s, count in came if when_s <= at_s), default=0)


Report = Callable[[str, float], None]
"""Called with what is measured now, and the share of the time that is over."""
